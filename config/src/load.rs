//! Reading: the file, then the `--set` items on top of it, key by key so that an error can name its place.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::Deserialize as _;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use crate::keys::{self, KEYS, Key};
use crate::{Config, ConfigError, Origin};

/// Larger than any configuration; keeps a wrong path (a disk image) from being read whole.
const FILE_BYTES_MAX: u64 = 1 << 20;

impl Config {
    /// Reads `file`, puts `sets` (`key=value`, the last one of a key wins) on top, and checks every value by itself
    /// and those that depend on each other.
    ///
    /// The value of an item is TOML where that makes a value the key takes, and plain text otherwise:
    /// `vm.vcpus=2`, `vm.console=stdout` and `vm.params=n=100 mode=lock` need no quotes.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, with its place.
    pub fn load(file: Option<&Path>, sets: &[String]) -> Result<Self, ConfigError> {
        let mut merged = Table::new();
        if let Some(path) = file {
            read_file(path, &mut merged)?;
        }
        for item in sets {
            apply_set(item, &mut merged)?;
        }
        // Each key was accepted alone, and keys are independent to serde: what remains here is agreement.
        let config = Self::deserialize(merged).map_err(|error| ConfigError::Conflict {
            what: error.message().to_owned(),
        })?;
        config.agree()?;
        Ok(config)
    }
}

fn read_file(path: &Path, merged: &mut Table) -> Result<(), ConfigError> {
    let text = file_text(path)?;
    let syntax = |error: &toml::de::Error| {
        let (line, column) = position(&text, error.span().map_or(0, |span| span.start));
        let message = error.message().lines().collect::<Vec<_>>().join("; ");
        ConfigError::Syntax {
            path: path.to_owned(),
            line,
            column,
            message,
        }
    };
    let spans = DeTable::parse(&text).map_err(|error| syntax(&error))?;
    let values: Table = text.parse().map_err(|error| syntax(&error))?;
    let origin = |offset| Origin::File {
        path: path.to_owned(),
        line: position(&text, offset).0,
    };
    for (section, content) in spans.get_ref() {
        let name: &str = section.get_ref();
        let Some(example) = first_key(name) else {
            return Err(unknown(origin(section.span().start), name));
        };
        let DeValue::Table(table) = content.get_ref() else {
            let origin = origin(section.span().start);
            return Err(ConfigError::Section {
                origin,
                section: name.to_owned(),
                example,
            });
        };
        read_section(name, table, &values, merged, &origin)?;
    }
    Ok(())
}

fn read_section(
    section: &str,
    spans: &DeTable<'_>,
    values: &Table,
    merged: &mut Table,
    origin: &impl Fn(usize) -> Origin,
) -> Result<(), ConfigError> {
    for last in spans.keys() {
        let place = || origin(Spanned::span(last).start);
        let full = format!("{section}.{}", last.get_ref());
        let key = keys::find(&full).ok_or_else(|| unknown(place(), &full))?;
        let value = values
            .get(section)
            .and_then(|table| table.get(last.get_ref().as_ref()));
        let Some(value) = value else { continue };
        if !fits(key, value) {
            return Err(bad_value(place(), key, value.to_string()));
        }
        store(key, value.clone(), merged);
    }
    Ok(())
}

fn file_text(path: &Path) -> Result<String, ConfigError> {
    let read_error = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    let file = File::open(path).map_err(read_error)?;
    file.take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(read_error)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(ConfigError::TooLarge {
            path: path.to_owned(),
            max: FILE_BYTES_MAX,
        });
    }
    Ok(text)
}

fn apply_set(item: &str, merged: &mut Table) -> Result<(), ConfigError> {
    let origin = || Origin::Set(item.to_owned());
    let (name, text) = item.split_once('=').ok_or_else(|| ConfigError::SetForm {
        item: item.to_owned(),
    })?;
    let name = name.trim();
    if let Some(example) = first_key(name) {
        return Err(ConfigError::Section {
            origin: origin(),
            section: name.to_owned(),
            example,
        });
    }
    let key = keys::find(name).ok_or_else(|| unknown(origin(), name))?;
    let typed = text.parse::<Value>().ok().filter(|value| fits(key, value));
    let plain = || Some(Value::String(text.to_owned())).filter(|value| fits(key, value));
    let value = typed
        .or_else(plain)
        .ok_or_else(|| bad_value(origin(), key, text.to_owned()))?;
    store(key, value, merged);
    Ok(())
}

/// Whether the typed configuration takes this value for this key. The types decide; the table only describes.
fn fits(key: &Key, value: &Value) -> bool {
    let mut alone = Table::new();
    store(key, value.clone(), &mut alone);
    Config::deserialize(alone).is_ok()
}

fn store(key: &Key, value: Value, table: &mut Table) {
    let (section, last) = key.parts();
    let section = table
        .entry(section)
        .or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(section) = section {
        section.insert(last.to_owned(), value);
    }
}

fn first_key(section: &str) -> Option<&'static str> {
    KEYS.iter()
        .find(|key| key.parts().0 == section)
        .map(|key| key.name)
}

fn unknown(origin: Origin, key: &str) -> ConfigError {
    ConfigError::UnknownKey {
        origin,
        key: key.to_owned(),
        nearest: keys::nearest(key),
    }
}

fn bad_value(origin: Origin, key: &Key, value: String) -> ConfigError {
    let value = if value.is_empty() {
        "an empty value".to_owned()
    } else {
        value
    };
    ConfigError::Value {
        origin,
        key: key.name,
        value,
        accepts: key.accepts,
    }
}

/// Line and column, from 1, of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset.min(text.len())).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (line, column)
}
