//! The output format of `consume`: kcat's letters and escapes.
//!
//! | | |
//! | --- | --- |
//! | `%s` `%S` | value, its length (-1 if there is none) |
//! | `%k` `%K` | key, its length (-1 if there is none) |
//! | `%t` `%p` `%o` | topic, partition, offset |
//! | `%T` | timestamp, ms since 1970 |
//! | `%h` | headers, as `name=value,name=value` |
//! | `%%` | a percent sign |
//! | `\n` `\r` `\t` `\\` `\0` `\xHH` | the bytes they are everywhere |
//!
//! Nothing is added: a format that shall end a line ends with `\n`.

use std::io::{self, Write};

/// What is printed of a record.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    /// Its topic.
    pub topic: &'a str,
    /// Its partition.
    pub partition: u32,
    /// Its offset.
    pub offset: i64,
    /// Its timestamp, ms since 1970.
    pub timestamp: i64,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value.
    pub value: Option<&'a [u8]>,
    /// Its headers.
    pub headers: &'a [(&'a [u8], Option<&'a [u8]>)],
}

/// A format, read once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Format(Vec<Part>);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    Text(Vec<u8>),
    Value,
    ValueLength,
    Key,
    KeyLength,
    Topic,
    Partition,
    Offset,
    Timestamp,
    Headers,
}

/// A format that can't be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormatError {
    /// A letter behind `%` that is none.
    #[error("{0:?} is no format letter; there are %s %S %k %K %t %p %o %T %h and %%")]
    Letter(String),
    /// An escape that is none.
    #[error("{0:?} is no escape; there are \\n \\r \\t \\0 \\\\ and \\xHH")]
    Escape(String),
}

impl std::str::FromStr for Format {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Format, FormatError> {
        let (mut parts, mut plain) = (Vec::new(), Vec::new());
        let mut letters = text.chars();
        while let Some(letter) = letters.next() {
            match letter {
                '%' => match field(letters.next())? {
                    Some(part) => {
                        flush(&mut plain, &mut parts);
                        parts.push(part);
                    }
                    None => plain.push(b'%'),
                },
                '\\' => plain.push(escape(&mut letters)?),
                other => plain.extend(other.encode_utf8(&mut [0; 4]).bytes()),
            }
        }
        flush(&mut plain, &mut parts);
        Ok(Format(parts))
    }
}

fn flush(plain: &mut Vec<u8>, parts: &mut Vec<Part>) {
    if !plain.is_empty() {
        parts.push(Part::Text(std::mem::take(plain)));
    }
}

/// `None` is the percent sign itself.
fn field(letter: Option<char>) -> Result<Option<Part>, FormatError> {
    Ok(Some(match letter {
        Some('s') => Part::Value,
        Some('S') => Part::ValueLength,
        Some('k') => Part::Key,
        Some('K') => Part::KeyLength,
        Some('t') => Part::Topic,
        Some('p') => Part::Partition,
        Some('o') => Part::Offset,
        Some('T') => Part::Timestamp,
        Some('h') => Part::Headers,
        Some('%') => return Ok(None),
        other => return Err(FormatError::Letter(format!("%{}", other.map(String::from).unwrap_or_default()))),
    }))
}

fn escape(letters: &mut std::str::Chars<'_>) -> Result<u8, FormatError> {
    let wrong = |rest: &str| FormatError::Escape(format!("\\{rest}"));
    Ok(match letters.next() {
        Some('n') => b'\n',
        Some('r') => b'\r',
        Some('t') => b'\t',
        Some('0') => 0,
        Some('\\') => b'\\',
        Some('x') => {
            let digits: String = letters.by_ref().take(2).collect();
            let whole = digits.len() == 2 && digits.bytes().all(|d| d.is_ascii_hexdigit());
            u8::from_str_radix(&digits, 16).ok().filter(|_| whole).ok_or_else(|| wrong(&format!("x{digits}")))?
        }
        other => return Err(wrong(&other.map(String::from).unwrap_or_default())),
    })
}

/// The bytes of a text with escapes and no letters, as `--key-separator '\t'`.
pub fn unescape(text: &str) -> Result<Vec<u8>, FormatError> {
    let mut bytes = Vec::new();
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => bytes.push(escape(&mut letters)?),
            other => bytes.extend(other.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    Ok(bytes)
}

impl Format {
    /// Writes a record.
    pub fn write(&self, out: &mut impl Write, record: &Shown<'_>) -> io::Result<()> {
        let length = |bytes: Option<&[u8]>| bytes.map_or(-1, |b| b.len() as i64);
        for part in &self.0 {
            match part {
                Part::Text(bytes) => out.write_all(bytes)?,
                Part::Value => out.write_all(record.value.unwrap_or_default())?,
                Part::ValueLength => write!(out, "{}", length(record.value))?,
                Part::Key => out.write_all(record.key.unwrap_or_default())?,
                Part::KeyLength => write!(out, "{}", length(record.key))?,
                Part::Topic => out.write_all(record.topic.as_bytes())?,
                Part::Partition => write!(out, "{}", record.partition)?,
                Part::Offset => write!(out, "{}", record.offset)?,
                Part::Timestamp => write!(out, "{}", record.timestamp)?,
                Part::Headers => write_headers(out, record)?,
            }
        }
        Ok(())
    }
}

fn write_headers(out: &mut impl Write, record: &Shown<'_>) -> io::Result<()> {
    for (index, (name, value)) in record.headers.iter().enumerate() {
        if index > 0 {
            out.write_all(b",")?;
        }
        out.write_all(name)?;
        out.write_all(b"=")?;
        out.write_all(value.unwrap_or(b"NULL"))?;
    }
    Ok(())
}

/// A record as one line of JSON, with kcat's names. Bytes that are no UTF-8 are given in hexadecimal as `key_hex`, `payload_hex`.
pub fn record_json(record: &Shown<'_>) -> serde_json::Value {
    let mut object = serde_json::Map::new();
    object.insert("topic".into(), record.topic.into());
    object.insert("partition".into(), record.partition.into());
    object.insert("offset".into(), record.offset.into());
    object.insert("ts".into(), record.timestamp.into());
    let headers =
        record.headers.iter().map(|(name, value)| serde_json::json!([String::from_utf8_lossy(name), value.map(String::from_utf8_lossy)]));
    object.insert("headers".into(), headers.collect());
    put_bytes(&mut object, "key", record.key);
    put_bytes(&mut object, "payload", record.value);
    object.into()
}

fn put_bytes(object: &mut serde_json::Map<String, serde_json::Value>, name: &str, bytes: Option<&[u8]>) {
    match bytes.map(std::str::from_utf8) {
        None => object.insert(name.into(), serde_json::Value::Null),
        Some(Ok(text)) => object.insert(name.into(), text.into()),
        Some(Err(_)) => {
            let digits = bytes.unwrap_or_default().iter().map(|b| format!("{b:02x}")).collect::<String>();
            object.insert(format!("{name}_hex"), digits.into())
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: Shown<'static> = Shown {
        topic: "orders",
        partition: 3,
        offset: 41,
        timestamp: 1700,
        key: Some(b"k"),
        value: Some(b"v\xff"),
        headers: &[(b"a", Some(b"1")), (b"b", None)],
    };

    fn shown(format: &str, record: &Shown<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        format.parse::<Format>().unwrap().write(&mut out, record).unwrap();
        out
    }

    #[test]
    fn letters_and_escapes_are_kcats() {
        assert_eq!(shown("%t/%p@%o %T %k=%s (%K,%S) %h 100%%\\n", &RECORD), b"orders/3@41 1700 k=v\xff (1,2) a=1,b=NULL 100%\n");
        let empty = Shown { key: None, value: None, headers: &[], ..RECORD };
        assert_eq!(shown("[%k|%s|%K|%S|%h]\\t\\x41\\\\é", &empty), "[||-1|-1|]\tA\\é".as_bytes());
    }

    #[test]
    fn what_is_no_format_is_named() {
        assert_eq!("%q".parse::<Format>(), Err(FormatError::Letter("%q".into())));
        assert_eq!("%".parse::<Format>(), Err(FormatError::Letter("%".into())));
        for escape in ["\\q", "\\", "\\x4", "\\xzz", "\\x+1"] {
            assert_eq!(escape.parse::<Format>(), Err(FormatError::Escape(escape.into())));
        }
        assert_eq!(unescape("a\\t:").unwrap(), b"a\t:");
    }

    #[test]
    fn json_has_every_byte() {
        let line = record_json(&RECORD);
        assert_eq!((&line["key"], &line["payload_hex"], &line["offset"]), (&"k".into(), &"76ff".into(), &41.into()));
        assert!(record_json(&Shown { value: None, ..RECORD })["payload"].is_null());
    }
}
