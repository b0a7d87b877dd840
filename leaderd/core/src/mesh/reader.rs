//! Reads the tables of a TOML document field by field. Each mistake goes to the [`Sink`], and reading goes on.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::Sink;
use super::values::{Bad, nearest};
use crate::duration;

/// A value and the byte of the file it starts at.
#[derive(Debug, Clone)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) at: usize,
}

/// A table while it is read. Fields that were not read by the end are unknown ones.
pub(super) struct Section<'a, 't> {
    /// How messages name it, such as `nodes.cloud-0`.
    pub(super) path: String,
    pub(super) at: usize,
    table: Option<&'a DeTable<'t>>,
    known: BTreeSet<&'static str>,
}

impl<'a, 't> Section<'a, 't> {
    pub(super) fn root(table: &'a DeTable<'t>) -> Self {
        Self { path: String::new(), at: 0, table: Some(table), known: BTreeSet::new() }
    }

    fn new(path: String, at: usize, value: &'a Spanned<DeValue<'t>>, sink: &mut Sink<'_>) -> Self {
        let table = value.get_ref().as_table();
        if table.is_none() {
            let message =
                format!("`{path}` is {}, not a table", article(value.get_ref().type_str()));
            sink.push(value.span().start, message, format!("write [{path}]"));
        }
        Self { path, at, table, known: BTreeSet::new() }
    }

    fn get(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'t>>> {
        self.known.insert(key);
        self.table?.get(key)
    }

    fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|t| t.contains_key(key))
    }

    /// Returns where a field is, and counts it as known.
    pub(super) fn at_of(&mut self, key: &'static str) -> Option<usize> {
        self.known.insert(key);
        self.table?.get_key_value(key).map(|(k, _)| k.span().start)
    }

    /// Complains if the field is missing.
    pub(super) fn require(&mut self, key: &'static str, help: &str, sink: &mut Sink<'_>) {
        self.known.insert(key);
        if self.table.is_some_and(|t| !t.contains_key(key)) {
            sink.push(self.at, format!("`{}` is missing", self.name(key)), help);
        }
    }

    /// Returns a table inside; `None` if it is not there.
    pub(super) fn section(
        &mut self,
        key: &'static str,
        sink: &mut Sink<'_>,
    ) -> Option<Section<'a, 't>> {
        let value = self.get(key)?;
        let at = self.table?.get_key_value(key).map(|(k, _)| k.span().start)?;
        Some(Section::new(self.name(key), at, value, sink))
    }

    /// Returns the tables inside, with their names: `[locations.NAME]`.
    pub(super) fn sections(&self, sink: &mut Sink<'_>) -> Vec<(At<String>, Section<'a, 't>)> {
        let each = self.table.into_iter().flatten().map(|(key, value)| {
            let (name, at) = (key.get_ref().to_string(), key.span().start);
            let section = Section::new(self.name(&name), at, value, sink);
            (At { value: name, at }, section)
        });
        each.collect()
    }

    /// Returns a list of tables, each to be read on its own: `key = [{ … }, { … }]` or `[[path.key]]`.
    pub(super) fn tables(
        &mut self,
        key: &'static str,
        sink: &mut Sink<'_>,
    ) -> Vec<Section<'a, 't>> {
        let name = self.name(key);
        let list = self.value(key, sink, |v| {
            v.as_array()
                .ok_or_else(|| Bad::new(wrong_type(v, "a list"), format!("write {key} = [ … ]")))
        });
        let mut all = Vec::new();
        for item in list.iter().flat_map(|l| l.value.iter()) {
            let is_table = |v: &'a DeValue<'t>| match v.as_table() {
                Some(_) => Ok(()),
                None => Err(Bad::new(
                    wrong_type(v, "a table"),
                    format!("write {key} = [{{ … }}, {{ … }}]"),
                )),
            };
            if read_value(&name, item, sink, is_table).is_some() {
                all.push(Section::new(name.clone(), item.span().start, item, sink));
            }
        }
        all
    }

    fn value<T>(
        &mut self,
        key: &'static str,
        sink: &mut Sink<'_>,
        read: impl FnOnce(&'a DeValue<'t>) -> Result<T, Bad>,
    ) -> Option<At<T>> {
        let value = self.get(key)?;
        read_value(&self.name(key), value, sink, read)
    }

    /// Reads a string with `parse`.
    pub(super) fn text<T>(
        &mut self,
        key: &'static str,
        sink: &mut Sink<'_>,
        parse: impl FnOnce(&str) -> Result<T, Bad>,
    ) -> Option<At<T>> {
        self.value(key, sink, |v| parse(as_text(v)?))
    }

    /// Reads a list of strings with `parse`. Wrong ones are mistakes, and left out.
    pub(super) fn texts<T>(
        &mut self,
        key: &'static str,
        sink: &mut Sink<'_>,
        parse: impl Fn(&str) -> Result<T, Bad>,
    ) -> Option<At<Vec<At<T>>>> {
        self.list(key, sink, |v| parse(as_text(v)?))
    }

    pub(super) fn numbers(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        sink: &mut Sink<'_>,
    ) -> Option<At<Vec<At<u64>>>> {
        self.list(key, sink, |v| as_number(v, &range))
    }

    fn list<T>(
        &mut self,
        key: &'static str,
        sink: &mut Sink<'_>,
        read: impl Fn(&'a DeValue<'t>) -> Result<T, Bad>,
    ) -> Option<At<Vec<At<T>>>> {
        let name = self.name(key);
        let array = self.value(key, sink, |v| {
            v.as_array()
                .ok_or_else(|| Bad::new(wrong_type(v, "a list"), format!("write {key} = [ … ]")))
        })?;
        let items =
            array.value.iter().filter_map(|item| read_value(&name, item, sink, &read)).collect();
        Some(At { value: items, at: array.at })
    }

    pub(super) fn number(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        sink: &mut Sink<'_>,
    ) -> Option<At<u64>> {
        self.value(key, sink, |v| as_number(v, &range))
    }

    pub(super) fn float(
        &mut self,
        key: &'static str,
        range: RangeInclusive<f64>,
        sink: &mut Sink<'_>,
    ) -> Option<At<f64>> {
        self.value(key, sink, |v| {
            let text = v.as_float().map(|f| f.as_str()).or(v.as_integer().map(|i| i.as_str()));
            let help = format!("write a number from {} to {}", range.start(), range.end());
            let number = text.and_then(|t| t.replace('_', "").parse::<f64>().ok());
            let number = number.ok_or_else(|| Bad::new(wrong_type(v, "a number"), help.clone()))?;
            if range.contains(&number) {
                Ok(number)
            } else {
                Err(Bad::new(format!("{number} is out of range"), help))
            }
        })
    }

    pub(super) fn flag(&mut self, key: &'static str, sink: &mut Sink<'_>) -> Option<At<bool>> {
        self.value(key, sink, |v| {
            v.as_bool().ok_or_else(|| {
                Bad::new(wrong_type(v, "true or false"), "write true or false, without quotes")
            })
        })
    }

    pub(super) fn duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
        sink: &mut Sink<'_>,
    ) -> Option<At<Duration>> {
        let help = || {
            let [least, most] = [range.start(), range.end()].map(|d| duration::show(*d));
            format!("write a duration from \"{least}\" to \"{most}\"")
        };
        self.value(key, sink, |v| {
            let text = v.as_str().ok_or_else(|| Bad::new(wrong_type(v, "a duration"), help()))?;
            match duration::parse(text) {
                Some(d) if range.contains(&d) => Ok(d),
                Some(_) => Err(Bad::new(format!("{text:?} is out of range"), help())),
                None => Err(Bad::new(format!("{text:?} is no duration"), duration::HELP)),
            }
        })
    }

    /// Complains about every field that was not read.
    pub(super) fn finish(self, sink: &mut Sink<'_>) {
        for (key, _) in self.table.into_iter().flatten() {
            let name: &str = key.get_ref();
            if self.known.contains(name) {
                continue;
            }
            let known: Vec<&str> = self.known.iter().copied().collect();
            let help = match nearest(name, known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here: {}", known.join(", ")),
            };
            sink.push(key.span().start, format!("unknown field `{}`", self.name(name)), help);
        }
    }
}

fn read_value<'a, 't, T>(
    name: &str,
    value: &'a Spanned<DeValue<'t>>,
    sink: &mut Sink<'_>,
    read: impl FnOnce(&'a DeValue<'t>) -> Result<T, Bad>,
) -> Option<At<T>> {
    let at = value.span().start;
    match read(value.get_ref()) {
        Ok(value) => Some(At { value, at }),
        Err(Bad(message, help)) => {
            sink.push(at, format!("`{name}`: {message}"), help);
            None
        }
    }
}

fn as_text<'a>(v: &'a DeValue<'_>) -> Result<&'a str, Bad> {
    v.as_str().ok_or_else(|| Bad::new(wrong_type(v, "a string"), "write it in quotes"))
}

fn as_number(v: &DeValue<'_>, range: &RangeInclusive<u64>) -> Result<u64, Bad> {
    let help = format!("write a whole number from {} to {}", range.start(), range.end());
    let integer =
        v.as_integer().ok_or_else(|| Bad::new(wrong_type(v, "a whole number"), help.clone()))?;
    match u64::from_str_radix(integer.as_str(), integer.radix()) {
        Ok(n) if range.contains(&n) => Ok(n),
        _ => Err(Bad::new(format!("{} is out of range", integer.as_str()), help)),
    }
}

fn wrong_type(v: &DeValue<'_>, wanted: &str) -> String {
    format!("{wanted} is wanted, this is {}", article(v.type_str()))
}

fn article(kind: &str) -> String {
    let vowel = kind.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {kind}", if vowel { "an" } else { "a" })
}
