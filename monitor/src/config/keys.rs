//! The declaration of configuration keys: each is spelled once, with its type, default, bounds and documentation.
//!
//! [`keys!`] makes of a declaration the struct that holds the values, how they are read, and a table from which the
//! documents are made. A value is looked up in the `[[vm]]` table that is being read, then in the file, and is the
//! default where neither has it: what a rule may change is whatever is not declared as the host's.

use toml::de::{DeTable, DeValue};

use super::values::{Problem, Rule};

/// The table of keys that stand before any table header.
pub(super) const ROOT: &str = "root";
/// The default of a key that has none.
const UNSET: &str = "none";

/// What is declared of one key.
pub(super) struct Key {
    /// The table in which it stands for the host.
    pub(super) table: &'static str,
    /// Its name as Rust has it; see [`Key::name`].
    pub(super) ident: &'static str,
    /// Its default in TOML, or `none`.
    pub(super) default: &'static str,
    /// A value that stands in the documents where there is no default; else empty.
    pub(super) example: &'static str,
    /// Its documentation.
    pub(super) doc: &'static str,
    /// What it may be, in words; may be empty.
    pub(super) allowed: fn() -> String,
    /// Why it may not stand in a `[[vm]]` table; empty: it may.
    pub(super) host_only: &'static str,
}

impl Key {
    /// Its name in TOML.
    pub(super) fn name(&self) -> &'static str {
        self.ident.trim_start_matches("r#")
    }

    /// The default in TOML, if it has one.
    pub(super) fn default(&self) -> Option<&'static str> {
        (self.default != UNSET).then_some(self.default)
    }
}

/// Values that are read together from declared keys.
pub(super) trait Group: Sized {
    /// The keys in the declared order.
    const KEYS: &'static [Key];

    /// The values in `layers`.
    fn read(layers: &Layers<'_>) -> Result<Self, Problem>;

    /// The keys, with their tables, whose values in `other` differ.
    fn differing(&self, other: &Self) -> Vec<&'static str>;
}

/// Where values come from: a table of `[[vm]]` over the file's tables over the defaults.
pub(super) struct Layers<'a> {
    file: &'a DeTable<'a>,
    rule: Option<&'a DeTable<'a>>,
    /// Where a contradiction is reported if none of the keys in question was written.
    place: usize,
}

impl<'a> Layers<'a> {
    /// The file alone.
    pub(super) fn of_file(file: &'a DeTable<'a>) -> Self {
        Self { file, rule: None, place: 0 }
    }

    /// The table `rule`, which begins at the byte `place`, over the file.
    pub(super) fn over(file: &'a DeTable<'a>, rule: &'a DeTable<'a>, place: usize) -> Self {
        Self { file, rule: Some(rule), place }
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// What `rule` refuses.
    pub(super) fn read<R: Rule>(&self, key: &Key, rule: &R) -> Result<R::Value, Problem> {
        let of_rule = self.rule.and_then(|table| table.get(key.name()));
        let written = of_rule.or_else(|| table_of(self.file, key.table)?.get(key.name()));
        match (written, key.default()) {
            (Some(value), _) => rule.read(value.clone()),
            (None, Some(default)) => rule.read(DeValue::parse(default)?),
            (None, None) => rule.unset().ok_or_else(|| Problem {
                offset: self.place,
                message: format!("the key `{}` is missing: {}", key.name(), rule.allowed()),
            }),
        }
    }

    /// Where the first of `keys` stands that was written in the uppermost layer.
    pub(super) fn place_of(&self, keys: &[(&str, &str)]) -> Option<usize> {
        keys.iter().find_map(|(table, name)| {
            let tables = self.rule.or_else(|| table_of(self.file, table));
            tables?.get(*name).map(|value| value.span().start)
        })
    }

    /// The same, or where the layer begins.
    pub(super) fn place_or_start(&self, keys: &[(&str, &str)]) -> usize {
        self.place_of(keys).unwrap_or(self.place)
    }
}

fn table_of<'a>(file: &'a DeTable<'a>, table: &str) -> Option<&'a DeTable<'a>> {
    if table == ROOT { Some(file) } else { file.get(table)?.get_ref().as_table() }
}

/// Declares keys, as `TABLE.KEY: TYPE = DEFAULT, RULE;` each, with its documentation before it; `= none like EXAMPLE`
/// for one without a default, and `, host REASON` behind the rule of one that may not stand in `[[vm]]`.
///
/// With `struct NAME`, the struct is declared as well, with fields as visible as it is; with `for NAME`, it is declared elsewhere and
/// its fields have the same names.
macro_rules! keys {
    ($(#[$meta:meta])* $vis:vis struct $name:ident {
        $(
            $(#[doc = $doc:literal])+
            $table:ident.$key:ident: $type:ty = $default:tt $(like $example:tt)?, $rule:expr
            $(, host $reason:literal)?;
        )+
    }) => {
        $(#[$meta])*
        $vis struct $name {
            $(
                $(#[doc = $doc])+
                $vis $key: $type,
            )+
        }

        $crate::config::keys::keys! { for $name {
            $(
                $(#[doc = $doc])+
                $table.$key = $default $(like $example)?, $rule $(, host $reason)?;
            )+
        } }
    };
    (for $name:ty {
        $(
            $(#[doc = $doc:literal])+
            $table:ident.$key:ident = $default:tt $(like $example:tt)?, $rule:expr
            $(, host $reason:literal)?;
        )+
    }) => {
        impl $crate::config::keys::Group for $name {
            const KEYS: &'static [$crate::config::keys::Key] = &[$(
                $crate::config::keys::keys!(
                    @key $table $key $default [$($example)?] [$($doc)+] [$($reason)?] $rule
                ),
            )+];

            fn read(
                layers: &$crate::config::keys::Layers<'_>,
            ) -> Result<Self, $crate::config::values::Problem> {
                Ok(Self { $(
                    $key: layers.read(
                        &$crate::config::keys::keys!(
                            @key $table $key $default [$($example)?] [$($doc)+] [$($reason)?] $rule
                        ),
                        &$rule,
                    )?,
                )+ })
            }

            fn differing(&self, other: &Self) -> Vec<&'static str> {
                let mut keys = Vec::new();
                $(if self.$key != other.$key {
                    keys.push(concat!(stringify!($table), ".", stringify!($key)));
                })+
                keys
            }
        }
    };
    (
        @key $table:ident $key:ident $default:tt [$($example:tt)?] [$($doc:literal)+]
        [$($reason:literal)?] $rule:expr
    ) => {
        $crate::config::keys::Key {
            table: stringify!($table),
            ident: stringify!($key),
            default: stringify!($default),
            example: concat!("" $(, stringify!($example))?),
            doc: concat!($($doc, "\n"),+),
            allowed: || $crate::config::values::Rule::allowed(&$rule),
            host_only: concat!("" $(, $reason)?),
        }
    };
}
pub(super) use keys;
