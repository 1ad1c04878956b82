//! What keeps a hostile template from eating the machine.
//!
//! Steps are bounded by minijinja's fuel. Fuel does not see sizes: thirty times `x ~ x` is cheap and a gigabyte. So
//! the text that a rendering produces is counted here: every text and list has a largest size, all of them together a
//! budget, and what could blow up in one step is refused before it does. A rendering runs on a thread of its own, so
//! its account is a thread-local. Operators are brought here by [`guard`](super::guard).

use std::cell::Cell;
use std::fmt::{self, Write};

use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Error, ErrorKind, Value};

/// No single text inside a template may be longer (bytes).
pub(super) const MAX_TEXT: usize = 16 << 20;
/// All texts that one rendering produces, temporary ones included (bytes).
const MAX_TOTAL: usize = 512 << 20;
/// Longest list that may be made.
const MAX_LIST: usize = 1 << 20;
/// Memory that one element of a list takes (bytes).
const ELEMENT: usize = 32;

thread_local! {
    static SPENT: Cell<usize> = const { Cell::new(0) };
}

/// Start a rendering's account on this thread.
pub(super) fn reset() {
    SPENT.set(0);
}

fn refuse(why: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}

/// Whether a text of `bytes` may exist.
pub(super) fn check(bytes: usize) -> Result<(), Error> {
    if bytes > MAX_TEXT {
        return Err(refuse(format!("a text in the template grew beyond {} MiB", MAX_TEXT >> 20)));
    }
    Ok(())
}

/// A text of `bytes` comes to be.
pub(super) fn charge(bytes: usize) -> Result<(), Error> {
    check(bytes)?;
    charge_many(bytes, 1)
}

fn charge_many(bytes: usize, times: usize) -> Result<(), Error> {
    let spent = SPENT.get().saturating_add(bytes.saturating_mul(times));
    SPENT.set(spent);
    if spent > MAX_TOTAL {
        return Err(refuse(format!("the template produced more than {} MiB of text in all", MAX_TOTAL >> 20)));
    }
    Ok(())
}

/// Charge a result to the budget.
pub(super) fn spent(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => charge(value.as_str().map_or(0, str::len))?,
        ValueKind::Seq | ValueKind::Iterable => {
            let len = value.len().unwrap_or(0);
            if len > MAX_LIST {
                return Err(refuse(format!("a list in the template grew beyond {MAX_LIST} elements")));
            }
            charge_many(ELEMENT, len)?;
        }
        _ => {}
    }
    Ok(value)
}

/// Python's `str(value)`, refused while it is written if it gets too long.
pub(super) fn text_of(value: &Value) -> Result<String, Error> {
    struct Bounded(String);
    impl Write for Bounded {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            check(self.0.len() + text.len()).map_err(|_| fmt::Error)?;
            self.0.push_str(text);
            Ok(())
        }
    }
    let mut text = Bounded(String::new());
    if value.kind() == ValueKind::Number {
        text.0 = super::json::number(value, false);
    } else if write!(text, "{value}").is_err() {
        check(usize::MAX)?;
    }
    charge(text.0.len())?;
    Ok(text.0)
}

/// An operand of `~`: itself if it is a text, else its text.
pub(super) fn flat(value: &Value) -> Result<Value, Error> {
    if value.kind() == ValueKind::String { Ok(value.clone()) } else { text_of(value).map(Value::from) }
}

/// What a loop goes over, when its body writes `bytes` of literal text each time. Its length becomes known, which
/// `loop.last` needs.
pub(super) fn each(value: Value, bytes: usize) -> Result<Value, Error> {
    let value = match value.kind() {
        ValueKind::String => {
            before_list(value.clone())?;
            value.as_str().unwrap_or_default().chars().map(Value::from).collect()
        }
        ValueKind::Iterable if value.len().is_none() => {
            let mut items = Vec::new();
            for item in value.try_iter()? {
                charge_many(ELEMENT, 1)?;
                items.push(item);
            }
            Value::from(items)
        }
        _ => value,
    };
    charge_many(bytes, value.len().unwrap_or(0))?;
    Ok(value)
}

fn length(value: &Value) -> Result<usize, Error> {
    match value.as_str() {
        Some(text) => Ok(text.len()),
        None => text_of(value).map(|text| text.len()),
    }
}

/// `text.replace(old, new)`.
pub(super) fn before_replace(args: &[Value]) -> Result<(), Error> {
    let [text, old, new, ..] = args else { return Ok(()) };
    let (Some(text), Some(old), Some(new)) = (text.as_str(), old.as_str(), new.as_str()) else { return Ok(()) };
    let grown = new.len().saturating_sub(old.len());
    if grown > 0 {
        check(text.len().saturating_add(text.matches(old).count().saturating_mul(grown)))?;
    }
    Ok(())
}

/// `separator.join(items)`.
pub(super) fn before_join(separator: Value, items: Value) -> Result<(), Error> {
    let separator = separator.as_str().map_or(0, str::len);
    let mut total = 0usize;
    for item in items.try_iter()? {
        total = total.saturating_add(separator).saturating_add(length(&item)?);
        check(total)?;
    }
    Ok(())
}

/// `text | indent(width)`.
pub(super) fn before_indent(args: &[Value]) -> Result<(), Error> {
    let (text, width, _, _, named): (&Value, Option<Value>, Option<bool>, Option<bool>, Kwargs) = from_args(args)?;
    let width = width.or(named.get("width")?).and_then(|w| usize::try_from(w).ok()).unwrap_or(4);
    let text = text.as_str().unwrap_or_default();
    check(text.len().saturating_add((text.matches('\n').count() + 1).saturating_mul(width)))
}

/// `format` with widths: they may not be long numbers, nor come from the arguments.
pub(super) fn before_format(args: &[Value]) -> Result<(), Error> {
    let text = args.first().and_then(Value::as_str).unwrap_or_default();
    let long_number = text.as_bytes().windows(5).any(|w| w.iter().all(u8::is_ascii_digit));
    if long_number || text.contains("%*") {
        return Err(refuse("format: widths beyond 9999 are refused".into()));
    }
    let mut total = text.len();
    for value in args.iter().skip(1) {
        total = total.saturating_add(length(value)?);
    }
    check(total)
}

/// Anything that makes a list with at most one element per character or item.
pub(super) fn before_list(value: Value) -> Result<(), Error> {
    let len = value.as_str().map(str::len).or(value.len()).unwrap_or(0);
    charge_many(ELEMENT, len)
}

/// `items | batch(n)`, `items | slice(n)`.
pub(super) fn before_batch(args: &[Value]) -> Result<(), Error> {
    let n = args.get(1).and_then(|n| usize::try_from(n.clone()).ok()).unwrap_or(0);
    charge_many(ELEMENT, n)
}

/// `items | sum`: numbers only, as in Python.
pub(super) fn before_sum(args: &[Value]) -> Result<(), Error> {
    let items = args.first().filter(|_| args.len() == 1);
    for item in items.into_iter().flat_map(Value::try_iter).flatten() {
        if !matches!(item.kind(), ValueKind::Number | ValueKind::Bool) {
            return Err(refuse("sum: only numbers can be added up; use join for texts".into()));
        }
    }
    Ok(())
}
