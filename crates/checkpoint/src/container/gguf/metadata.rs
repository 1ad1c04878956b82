//! Keys and values of a GGUF file.

use std::collections::BTreeMap;

use super::Malformed;
use super::cursor::Cursor;
use crate::{Bytes, Error, Result};

/// Arrays of arrays deeper than this are refused.
const DEEPEST: usize = 4;

/// What parsing gives.
type Parsed<T> = std::result::Result<T, Malformed>;

/// Type of a value.
#[allow(missing_docs)] // each variant is its own definition
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    /// In the order of the format's numbers: name, and bytes (the fewest, of a string or an array).
    const TABLE: [(Self, &'static str, u64); 13] = [
        (Self::U8, "u8", 1),
        (Self::I8, "i8", 1),
        (Self::U16, "u16", 2),
        (Self::I16, "i16", 2),
        (Self::U32, "u32", 4),
        (Self::I32, "i32", 4),
        (Self::F32, "f32", 4),
        (Self::Bool, "bool", 1),
        (Self::String, "string", 8),
        (Self::Array, "array", 12),
        (Self::U64, "u64", 8),
        (Self::I64, "i64", 8),
        (Self::F64, "f64", 8),
    ];

    fn read(cursor: &mut Cursor, key: &str) -> Parsed<Self> {
        let id = cursor.u32(format_args!("the value type of key {key:?}"))?;
        let row = usize::try_from(id).ok().and_then(|id| Self::TABLE.get(id));
        row.map(|row| row.0).ok_or_else(|| Malformed::ValueType { key: key.to_owned(), found: id })
    }

    fn least(self) -> u64 {
        Self::TABLE[self as usize].2
    }
}

/// A value. Integers and floats of all widths are kept in the widest.
#[derive(Clone, Debug)]
pub enum Value {
    /// u8 to u64.
    Unsigned(u64),
    /// i8 to i64.
    Signed(i64),
    /// f32 and f64.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    Text(String),
    /// Values of one type, left in the file.
    Array(Array),
}

/// Values of one type, read when they are asked for. Their lengths have been checked.
#[derive(Clone, Debug)]
pub struct Array {
    kind: Kind,
    len: usize,
    data: Bytes,
}

impl Array {
    /// How many values there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The texts, if it is of texts.
    pub fn texts(&self) -> Option<impl Iterator<Item = &str>> {
        let mut cursor = Cursor::new(&self.data, 0);
        (self.kind == Kind::String).then(|| (0..self.len).filter_map(move |_| cursor.text("text").ok()))
    }

    /// The values, if they are numbers or truth values.
    pub fn scalars(&self) -> Option<impl Iterator<Item = Value>> {
        let plain = !matches!(self.kind, Kind::String | Kind::Array);
        let each = self.kind.least() as usize;
        plain.then(|| self.data.chunks_exact(each).map(|bytes| scalar(self.kind, bytes)))
    }

    /// The integers, if all values are integers that an `i64` holds.
    pub fn integers(&self) -> Option<Vec<i64>> {
        self.scalars()?.map(|v| v.integer()).collect()
    }

    /// The numbers, if they are numbers.
    pub fn numbers(&self) -> Option<Vec<f64>> {
        self.scalars()?.map(|v| v.number()).collect()
    }
}

impl Value {
    fn integer(&self) -> Option<i64> {
        match self {
            Self::Unsigned(n) => i64::try_from(*n).ok(),
            Self::Signed(n) => Some(*n),
            _ => None,
        }
    }

    fn number(&self) -> Option<f64> {
        match self {
            Self::Float(x) => Some(*x),
            other => other.integer().map(|n| n as f64),
        }
    }

    /// For a message.
    fn shown(&self) -> String {
        match self {
            Self::Unsigned(n) => n.to_string(),
            Self::Signed(n) => n.to_string(),
            Self::Float(x) => x.to_string(),
            Self::Bool(b) => b.to_string(),
            Self::Text(text) => match text.char_indices().nth(60) {
                Some((cut, _)) => format!("{:?}...", &text[..cut]),
                None => format!("{text:?}"),
            },
            Self::Array(a) => format!("an array of {} {}", a.len, Kind::TABLE[a.kind as usize].1),
        }
    }
}

/// A number or truth value of `kind` from its bytes.
fn scalar(kind: Kind, bytes: &[u8]) -> Value {
    let mut eight = [0; 8];
    eight.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    let bits = u64::from_le_bytes(eight);
    match kind {
        Kind::U8 | Kind::U16 | Kind::U32 | Kind::U64 => Value::Unsigned(bits),
        Kind::I8 => Value::Signed(i64::from(bits as i8)),
        Kind::I16 => Value::Signed(i64::from(bits as i16)),
        Kind::I32 => Value::Signed(i64::from(bits as i32)),
        Kind::I64 => Value::Signed(bits as i64),
        Kind::F32 => Value::Float(f64::from(f32::from_bits(bits as u32))),
        Kind::F64 => Value::Float(f64::from_bits(bits)),
        Kind::Bool | Kind::String | Kind::Array => Value::Bool(bits != 0),
    }
}

/// All keys of a file.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    file: String,
    values: BTreeMap<String, Value>,
}

impl Metadata {
    /// Reads `count` keys and values.
    pub(super) fn read(cursor: &mut Cursor, file: &Bytes, count: u64) -> Parsed<Self> {
        // An empty key, a type and a byte.
        cursor.room(count, 8 + 4 + 1, format_args!("a list of {count} keys and values"))?;
        let mut values = BTreeMap::new();
        for i in 0..count {
            let key = cursor.text(format_args!("key {i}"))?;
            let kind = Kind::read(cursor, key)?;
            let value = value(cursor, file, key, kind)?;
            if values.insert(key.to_owned(), value).is_some() {
                return Err(Malformed::DuplicateKey(key.to_owned()));
            }
        }
        Ok(Self { file: String::new(), values })
    }

    pub(super) fn of_file(self, file: &str) -> Self {
        Self { file: file.to_owned(), ..self }
    }

    /// What stands for the file in messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Every key and value.
    pub fn values(&self) -> &BTreeMap<String, Value> {
        &self.values
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// A text, if there.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", |v| match v {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A truth value, if there.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a bool", |v| match v {
            Value::Bool(b) => Some(*b),
            _ => None,
        })
    }

    /// An integer from 0, if there.
    pub fn usize(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "an integer from 0", |v| usize::try_from(v.integer()?).ok())
    }

    /// An integer from 0, or an array in which all are equal (one for each layer), if there.
    pub fn same_usize(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "an integer from 0, the same for every layer", |v| match v {
            Value::Array(array) => {
                let all = array.integers()?;
                let first = *all.first()?;
                usize::try_from(first).ok().filter(|_| all.iter().all(|n| *n == first))
            }
            one => usize::try_from(one.integer()?).ok(),
        })
    }

    /// A finite number, if there.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a finite number", |v| v.number().filter(|x| x.is_finite()))
    }

    /// An array, if there.
    pub fn array(&self, key: &str) -> Result<Option<&Array>> {
        self.typed(key, "an array", |v| match v {
            Value::Array(array) => Some(array),
            _ => None,
        })
    }

    /// The error for a key whose value makes no sense.
    pub fn wrong(&self, key: &str, expected: impl Into<String>) -> Error {
        let found = self.get(key).map_or_else(|| "nothing".to_owned(), Value::shown);
        Error::Config { file: self.file.clone(), key: key.to_owned(), expected: expected.into(), found }
    }

    fn typed<'a, T>(&'a self, key: &str, expected: &str, f: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        self.get(key).map(|v| f(v).ok_or_else(|| self.wrong(key, expected))).transpose()
    }
}

fn value(cursor: &mut Cursor, file: &Bytes, key: &str, kind: Kind) -> Parsed<Value> {
    Ok(match kind {
        Kind::String => Value::Text(cursor.text(format_args!("the text of key {key:?}"))?.to_owned()),
        Kind::Array => {
            let (kind, len, begin) = skip_array(cursor, key, 1)?;
            let data = file.slice(begin..cursor.at()).unwrap_or_else(|| Bytes::from_static(&[]));
            Value::Array(Array { kind, len, data })
        }
        plain => scalar(plain, cursor.bytes(plain.least(), format_args!("the value of key {key:?}"))?),
    })
}

/// Passes over an array, checking all of it: its type, its length, and where its values begin.
fn skip_array(cursor: &mut Cursor, key: &str, depth: usize) -> Parsed<(Kind, usize, usize)> {
    if depth > DEEPEST {
        return Err(Malformed::Nested { key: key.to_owned(), limit: DEEPEST });
    }
    let kind = Kind::read(cursor, key)?;
    let len = cursor.u64(format_args!("the array of key {key:?}"))?;
    let what = format_args!("an array of {len} in key {key:?}").to_string();
    cursor.room(len, kind.least(), &what)?;
    let begin = cursor.at();
    match kind {
        Kind::String => {
            for _ in 0..len {
                cursor.text(&what)?;
            }
        }
        Kind::Array => {
            for _ in 0..len {
                skip_array(cursor, key, depth + 1)?;
            }
        }
        plain => {
            cursor.bytes(len * plain.least(), &what)?;
        }
    }
    // Each value takes at least a byte of the file, whose length is a usize.
    Ok((kind, len as usize, begin))
}
