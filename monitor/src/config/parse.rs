//! From the file's text to valid values.

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    ActuatorConfig, Config, Discovery, EvidencePolicy, Metrics, Paths, Policy, Probes, Recorder,
    RetentionConfig, Storm, VmRule,
    detection::{self, HostLimits, MemoryReading},
    keys::{Group, Key, Layers, ROOT, keys},
    notify, place,
    secret::Secrets,
    values::{NamePattern, Problem},
};

keys! {
    /// What a `[[vm]]` table has beside what it changes.
    struct Selector {
        /// only these VMs
        vm.r#match: glob::Pattern = none like "db-*", NamePattern;
    }
}

/// All keys, in the order in which the documents have them.
pub(super) fn all_keys() -> impl Iterator<Item = &'static Key> {
    [
        Policy::KEYS,
        Paths::KEYS,
        Discovery::KEYS,
        Probes::KEYS,
        HostLimits::KEYS,
        MemoryReading::KEYS,
        EvidencePolicy::KEYS,
        RetentionConfig::KEYS,
        Selector::KEYS,
        ActuatorConfig::KEYS,
        Recorder::KEYS,
        Metrics::KEYS,
        notify::Table::KEYS,
    ]
    .into_iter()
    .flatten()
}

/// The tables that stand in the file once, in the order of the documents.
pub(super) const TABLES: [&str; 7] =
    ["paths", "discovery", "probes", "detection", "recovery", "recorder", "metrics"];
/// The tables that stand there as often as they are needed.
const LISTS: [&str; 2] = ["vm", "notify"];
/// What `[[notify]]` was called before.
const OLD_NOTIFY: &str = "tell";

/// The keys that may stand in `table`, or in a rule also those of the host that it may change.
pub(super) fn keys_of(table: &str) -> impl Iterator<Item = &'static Key> {
    let in_rule = table == "vm";
    all_keys().filter(move |key| {
        key.table == table || in_rule && [ROOT, "detection", "recovery"].contains(&key.table)
    })
}

/// The configuration in `text`, and what is to be said of it; `file_name` is only for that.
pub(super) fn parse(text: &str, file_name: &str, secrets: Secrets) -> Result<Config, Problem> {
    let parsed = DeTable::parse(text)?;
    let file = parsed.get_ref();
    check_names(file)?;

    let layers = Layers::of_file(file);
    let HostLimits { sample_interval, storm_vms, storm_share, max_restarts_per_minute } =
        Group::read(&layers)?;
    let policy = Policy::read(&layers)?;
    detection::check(&policy, sample_interval, &layers)?;
    let actuation = ActuatorConfig::read(&layers)?;
    actuation.check(&layers)?;
    let paths = Paths::read(&layers)?;
    let mut retention = RetentionConfig::read(&layers)?;
    if layers.place_of(&[("recovery", "memory_dump_dir")]).is_none() {
        retention.memory_dump_dir = paths.state_dir.join("memory");
    }
    let rule = |(place, table): (usize, _)| {
        let layers = Layers::over(file, table, place);
        let policy = Policy::read(&layers)?;
        detection::check(&policy, sample_interval, &layers)?;
        let actuation = ActuatorConfig::read(&layers)?;
        actuation.check(&layers)?;
        Ok(VmRule {
            pattern: Selector::read(&layers)?.r#match,
            policy,
            evidence_policy: Group::read(&layers)?,
            actuation,
            memory_every: MemoryReading::read(&layers)?.memory_every,
        })
    };
    let (notify, warnings) = notify_tables(file)?;
    let warning = |(offset, message): (usize, _)| {
        format!("{file_name}:{}: {message}", place::line_of(text, offset))
    };
    Ok(Config {
        mode: policy.mode,
        paths,
        discovery: Group::read(&layers)?,
        probes: Group::read(&layers)?,
        storm: Storm { vms: storm_vms, share: storm_share },
        max_restarts_per_minute,
        sample_interval,
        memory_every: MemoryReading::read(&layers)?.memory_every,
        recorder: Group::read(&layers)?,
        metrics: Group::read(&layers)?,
        notify: notify::targets(&notify, secrets)?,
        policy,
        evidence_policy: Group::read(&layers)?,
        retention,
        actuation,
        vms: tables_of(file, "vm")?.into_iter().map(rule).collect::<Result<_, Problem>>()?,
        warnings: warnings.into_iter().map(warning).collect(),
    })
}

/// Places and tables of `[[notify]]`, also by its old name, and what is to be said of that, with its place.
type NotifyTables<'a> = (Vec<(usize, &'a DeTable<'a>)>, Option<(usize, &'static str)>);

fn notify_tables<'a>(file: &'a DeTable<'a>) -> Result<NotifyTables<'a>, Problem> {
    let old = tables_of(file, OLD_NOTIFY)?;
    let new = tables_of(file, "notify")?;
    let Some((first, _)) = old.first() else { return Ok((new, None)) };
    if !new.is_empty() {
        let message = "is the old name of [[notify]], which stands here as well: rename it";
        return Err(Problem { offset: *first, message: message.to_owned() });
    }
    let warning = "[[tell]] is called [[notify]] now; the old name is still taken";
    let warning = (*first, warning);
    Ok((old, Some(warning)))
}

/// The tables of the list `name`, each with its place.
fn tables_of<'a>(
    file: &'a DeTable<'a>,
    name: &str,
) -> Result<Vec<(usize, &'a DeTable<'a>)>, Problem> {
    let Some(value) = file.get(name) else { return Ok(Vec::new()) };
    let refused = |at: &Spanned<_>| Problem::at(at, format!("must be tables, [[{name}]]"));
    let list = value.get_ref().as_array().ok_or_else(|| refused(value))?;
    let table = |item: &'a Spanned<DeValue<'a>>| {
        let table = item.get_ref().as_table().ok_or_else(|| refused(item))?;
        Ok((item.span().start, table))
    };
    list.iter().map(table).collect()
}

/// That only known keys stand in the file, and where they may.
fn check_names(file: &DeTable<'_>) -> Result<(), Problem> {
    let names = keys_of(ROOT).map(Key::name).chain(TABLES).chain(LISTS);
    refuse_unknown(file, &names.chain([OLD_NOTIFY]).collect::<Vec<_>>())?;
    for name in TABLES {
        let Some(value) = file.get(name) else { continue };
        let table = value.get_ref().as_table();
        let table =
            table.ok_or_else(|| Problem::at(value, format!("must be a table, [{name}]")))?;
        refuse_unknown(table, &keys_of(name).map(Key::name).collect::<Vec<_>>())?;
    }
    for (list, keys) in [("notify", "notify"), (OLD_NOTIFY, "notify"), ("vm", "vm")] {
        for (_, table) in tables_of(file, list)? {
            if list == "vm" {
                refuse_host_only(table)?;
            }
            refuse_unknown(table, &keys_of(keys).map(Key::name).collect::<Vec<_>>())?;
        }
    }
    Ok(())
}

fn refuse_host_only(rule: &DeTable<'_>) -> Result<(), Problem> {
    let refused = keys_of("vm").filter(|key| !key.host_only.is_empty());
    let first = refused.filter_map(|key| Some((rule.get(key.name())?, key.host_only)));
    match first.min_by_key(|(value, _)| value.span().start) {
        Some((value, reason)) => Err(Problem::at(value, reason)),
        None => Ok(()),
    }
}

fn refuse_unknown(table: &DeTable<'_>, known: &[&str]) -> Result<(), Problem> {
    let unknown = table.keys().filter(|key| !known.contains(&&**key.get_ref()));
    let Some(key) = unknown.min_by_key(|key| key.span().start) else { return Ok(()) };
    let known = known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    Err(Problem::at(key, format!("unknown field `{}`, expected one of {known}", key.get_ref())))
}
