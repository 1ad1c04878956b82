//! What Jinja templates take from Python and minijinja does differently: methods of strings, truths about types, the
//! way numbers print.

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value, filters};
use minijinja_contrib::pycompat;

use super::{json, limits};

/// Make `env` behave as transformers' environment does, with the [`limits`].
pub(super) fn install(env: &mut Environment<'_>) {
    env.set_unknown_method_callback(method);
    env.set_formatter(write);
    env.add_test("iterable", |v: &Value| v.kind() == ValueKind::String || v.try_iter().is_ok());
    env.add_test("sequence", |v: &Value| {
        matches!(v.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map) || v.is_undefined()
    });
    env.add_test("number", |v: &Value| matches!(v.kind(), ValueKind::Number | ValueKind::Bool));
    env.add_filter("tojson", json::tojson);
    env.add_filter("string", |value: &Value| limits::text_of(value).map(Value::from));
    env.add_filter("int", |value: &Value, default: Option<Value>| number(value, default, true));
    env.add_filter("float", |value: &Value, default: Option<Value>| number(value, default, false));

    let ok: Before = |_| Ok(());
    let guarded: [(&'static str, Value, Before); 19] = [
        ("replace", Value::from_function(filters::replace), limits::before_replace),
        ("join", Value::from_function(filters::join), |args| limits::before_join(arg(args, 1), arg(args, 0))),
        ("indent", Value::from_function(filters::indent), limits::before_indent),
        ("format", Value::from_function(filters::format), limits::before_format),
        ("list", Value::from_function(filters::list), |args| limits::before_list(arg(args, 0))),
        ("sum", Value::from_function(filters::sum), limits::before_sum),
        ("batch", Value::from_function(filters::batch), limits::before_batch),
        ("slice", Value::from_function(filters::slice), limits::before_batch),
        ("split", Value::from_function(filters::split), |args| limits::before_list(arg(args, 0))),
        ("lines", Value::from_function(filters::lines), |args| limits::before_list(arg(args, 0))),
        ("upper", Value::from_function(filters::upper), ok),
        ("lower", Value::from_function(filters::lower), ok),
        ("title", Value::from_function(filters::title), ok),
        ("capitalize", Value::from_function(filters::capitalize), ok),
        ("trim", Value::from_function(trim), ok),
        ("reverse", Value::from_function(filters::reverse), ok),
        ("sort", Value::from_function(filters::sort), ok),
        ("unique", Value::from_function(filters::unique), ok),
        ("map", Value::from_function(filters::map), ok),
    ];
    for (name, original, before) in guarded {
        env.add_filter(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            before(&args)?;
            limits::spent(original.call(state, &args)?)
        });
    }
}

/// `value | int(default=0)`, `value | float(default=0.0)`: what is not a number gives the default.
fn number(value: &Value, default: Option<Value>, integer: bool) -> Value {
    let text = value.as_str().map(str::trim);
    if integer {
        let exact = text.map_or_else(|| i64::try_from(value.clone()).ok(), |t| t.parse().ok());
        if let Some(n) = exact {
            return Value::from(n);
        }
    }
    let number = match text {
        Some(text) => text.parse().ok(),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None => f64::try_from(value.clone()).ok(),
    };
    match number {
        // Towards zero; out of range saturates.
        Some(x) if integer && x.is_finite() => Value::from(x as i64),
        Some(x) if !integer => Value::from(x),
        _ => default.unwrap_or_else(|| if integer { Value::from(0) } else { Value::from(0.0) }),
    }
}

type Before = fn(&[Value]) -> Result<(), Error>;

fn arg(args: &[Value], i: usize) -> Value {
    args.get(i).cloned().unwrap_or_default()
}

/// How `{{ value }}` is written: as Python's `str`.
fn write(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::String => limits::charge(value.as_str().map_or(0, str::len))?,
        ValueKind::Number if !value.is_integer() => return Ok(out.write_str(&json::number(value, false))?),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Plain => {
            return Ok(out.write_str(&limits::text_of(value)?)?);
        }
        _ => {}
    }
    minijinja::escape_formatter(out, state, value)
}

/// `text | trim(chars=none)`.
fn trim(value: &Value, chars: Option<&str>) -> Result<Value, Error> {
    let text = limits::text_of(value)?;
    Ok(Value::from(strip(&text, chars, true, true)))
}

/// Methods that pycompat lacks or sees differently, then pycompat's.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = string_method(text, name, args)?
    {
        return limits::spent(result);
    }
    let with_self = || [std::slice::from_ref(value), args].concat();
    match name {
        "replace" => limits::before_replace(&with_self())?,
        "join" => limits::before_join(value.clone(), arg(args, 0))?,
        "format" => limits::before_format(&with_self())?,
        _ => {}
    }
    limits::spent(pycompat::unknown_method_callback(state, value, name, args)?)
}

fn string_method(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let result = match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            Value::from(strip(text, chars, name != "rstrip", name != "lstrip"))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let last = name == "rpartition";
            let cut = if last { text.rsplit_once(separator) } else { text.split_once(separator) };
            let parts = match cut {
                Some((before, after)) => [before, separator, after],
                None if last => ["", "", text],
                None => [text, "", ""],
            };
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "split" | "rsplit" => {
            let (separator, most, named): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
            let separator = separator.or(named.get("sep")?);
            let most = most.or(named.get("maxsplit")?).and_then(|n| usize::try_from(n).ok());
            named.assert_all_used()?;
            limits::before_list(Value::from(text))?;
            split(text, separator, most, name == "rsplit")?.into_iter().map(Value::from).collect()
        }
        "splitlines" => {
            let (keep, named): (Option<bool>, Kwargs) = from_args(args)?;
            let keep = keep.or(named.get("keepends")?).unwrap_or(false);
            named.assert_all_used()?;
            limits::before_list(Value::from(text))?;
            splitlines(text, keep).into_iter().map(Value::from).collect()
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
}

/// Python's `str.isspace`: Unicode's White_Space and the four information separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn strip<'t>(text: &'t str, chars: Option<&str>, left: bool, right: bool) -> &'t str {
    let drop = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if left { text.trim_start_matches(drop) } else { text };
    if right { text.trim_end_matches(drop) } else { text }
}

fn split<'t>(text: &'t str, separator: Option<&str>, most: Option<usize>, right: bool) -> Result<Vec<&'t str>, Error> {
    let most = most.unwrap_or(usize::MAX - 1);
    match separator {
        Some("") => Err(Error::new(ErrorKind::InvalidOperation, "split: empty separator")),
        Some(separator) if right => {
            let mut parts: Vec<&str> = text.rsplitn(most + 1, separator).collect();
            parts.reverse();
            Ok(parts)
        }
        Some(separator) => Ok(text.splitn(most + 1, separator).collect()),
        None => {
            let mut parts = Vec::new();
            let mut rest = strip(text, None, true, true);
            while !rest.is_empty() {
                let cut = if right { rest.rfind(is_space) } else { rest.find(is_space) };
                match cut {
                    Some(at) if parts.len() < most => {
                        let (before, after) = rest.split_at(at);
                        let (part, left) = if right { (after, before) } else { (before, after) };
                        parts.push(strip(part, None, true, true));
                        rest = strip(left, None, !right, right);
                    }
                    _ => {
                        parts.push(rest);
                        break;
                    }
                }
            }
            if right {
                parts.reverse();
            }
            Ok(parts)
        }
    }
}

/// Python's line boundaries, of which there are many.
fn splitlines(text: &str, keep: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    let boundary = |c: char| {
        matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    while let Some(at) = rest.find(boundary) {
        let after = &rest[at..];
        let width = if after.starts_with("\r\n") { 2 } else { after.chars().next().map_or(0, char::len_utf8) };
        lines.push(&rest[..if keep { at + width } else { at }]);
        rest = &rest[at + width..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}
