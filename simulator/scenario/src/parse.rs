//! A scenario from its text.
//!
//! What the text may say is in `docs/SIMULATOR.md`. A key that is unknown, or out of place, is refused by its name and line.

use std::collections::BTreeSet;
use std::time::Duration;

use fleetkey_wire::Suite;
use fleetkey_wire::limits::{MAX_CELLS_PER_DEVICE, MIN_CELL_CAPACITY};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use crate::scenario::{
    Act, Amount, Class, Fleet, Group, NetworkProfile, Phase, Scenario, Sleep, Targets, Which,
};
use crate::units::{Bytes, Rate, Share, Time};

/// Devices at most.
const MAX_DEVICES: usize = 10_000_000;
/// Phases, groups and classes at most.
const MAX_PARTS: usize = 100;

/// A text that is no scenario: where, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadScenario(String);

impl Scenario {
    /// Reads a scenario.
    ///
    /// # Errors
    /// [`BadScenario`].
    pub fn from_toml(text: &str) -> Result<Self, BadScenario> {
        let whole = DeTable::parse(text).map_err(|error| BadScenario(error.to_string()))?;
        let span = whole.span();
        let mut whole = whole.into_inner();
        let phases = whole.remove("phase");
        let text = Text(text);
        let head: RawScenario = text.read(Spanned::new(span.clone(), DeValue::Table(whole)))?;
        let phases = match phases.map(Spanned::into_inner) {
            Some(DeValue::Array(phases)) => phases.into_iter().collect(),
            Some(_) => return Err(text.bad(&span, "phases are written as [[phase]]".into())),
            None => Vec::new(),
        };
        if phases.is_empty() || phases.len() > MAX_PARTS {
            return Err(text.bad(&span, format!("it has {} [[phase]], not 1 to {MAX_PARTS}", phases.len())));
        }
        let mut scenario = head.into_scenario(&text, &span)?;
        for phase in phases {
            let phase = text.phase(phase, &scenario)?;
            scenario.phases.push(phase);
        }
        Ok(scenario)
    }
}

type Place = std::ops::Range<usize>;

/// The text, to say where something is in it.
#[derive(Clone, Copy)]
struct Text<'i>(&'i str);

impl<'i> Text<'i> {
    fn bad(self, place: &Place, why: String) -> BadScenario {
        let line = self.0[..place.start.min(self.0.len())].matches('\n').count() + 1;
        BadScenario(format!("line {line}: {why}"))
    }

    fn read<T: DeserializeOwned>(self, value: Spanned<DeValue<'i>>) -> Result<T, BadScenario> {
        T::deserialize(ValueDeserializer::from(value)).map_err(|mut error| {
            error.set_input(Some(self.0));
            BadScenario(error.to_string())
        })
    }

    /// One phase: what all have in common is taken out, and the rest must be what its `do` asks for.
    fn phase(self, phase: Spanned<DeValue<'i>>, scenario: &Scenario) -> Result<Phase, BadScenario> {
        let place = phase.span();
        let DeValue::Table(mut own) = phase.into_inner() else {
            return Err(self.bad(&place, "phases are written as [[phase]]".into()));
        };
        let mut common = DeTable::new();
        for key in ["do", "name"].iter().chain(RawTargets::KEYS) {
            if let Some((key, value)) = own.remove_entry(*key) {
                common.insert(key, value);
            }
        }
        let common: RawCommon = self.read(Spanned::new(place.clone(), DeValue::Table(common)))?;
        let own = Spanned::new(place.clone(), DeValue::Table(own));
        let act = match common.what {
            What::Onboard => {
                let RawOnboard { count, rate } = self.read(own)?;
                self.positive(&place, "rate", rate.map(|rate| rate.0))?;
                Act::Onboard { count, rate: rate.map(|rate| rate.0) }
            }
            What::Churn => {
                let RawChurn { lasts, joins, leaves, revocations } = self.read(own)?;
                Act::Churn { lasts: lasts.0, joins: joins.0, leaves: leaves.0, revocations: revocations.0 }
            }
            What::Revoke => {
                let RawRevoke { count, share, which, class } = self.read(own)?;
                let count = match (count, share) {
                    (Some(count), None) => Amount::Count(count),
                    (None, Some(share)) => Amount::Share(share.0),
                    (Some(_), Some(_)) | (None, None) => {
                        return Err(self.bad(&place, "revoke takes either count or share".into()));
                    }
                };
                let class = class.map(|class| self.class(&class, scenario)).transpose()?;
                Act::Revoke { count, which: which.into(), class }
            }
            What::Rekey => self.read::<Nothing>(own).map(|_| Act::Rekey)?,
            What::Rotate => self.read::<Nothing>(own).map(|_| Act::Rotate)?,
            What::PowerCut => {
                let RawPowerCut { share, lasts, meanwhile } = self.read(own)?;
                Act::PowerCut { share: share.0, lasts: lasts.0, rekeys: meanwhile.is_some() }
            }
            What::RestartBroker => {
                let RawRestart { away } = self.read(own)?;
                Act::RestartBroker { away: away.0 }
            }
            What::Network => Act::Network(self.read::<RawNetwork>(own)?.into_profile(self, &place)?),
            What::Wait => {
                let RawWait { lasts } = self.read(own)?;
                Act::Wait { lasts: lasts.0 }
            }
        };
        let targets = common.targets();
        if targets.reconnect_ratio_at_most.is_some() && !matches!(act, Act::PowerCut { .. }) {
            return Err(self.bad(&place, "reconnect_ratio_at_most is for a power-cut".into()));
        }
        self.positive(&place, "reconnect_ratio_at_most", targets.reconnect_ratio_at_most)?;
        let name = common.name.unwrap_or_else(|| common.what.name().to_owned());
        Ok(Phase { name, act, targets })
    }

    fn positive(self, place: &Place, key: &str, value: Option<f64>) -> Result<(), BadScenario> {
        match value {
            Some(value) if value <= 0.0 => Err(self.bad(place, format!("{key} must be more than nothing"))),
            Some(_) | None => Ok(()),
        }
    }

    fn class(self, name: &Spanned<String>, scenario: &Scenario) -> Result<usize, BadScenario> {
        let found = scenario.classes.iter().position(|class| class.name == *name.get_ref());
        found.ok_or_else(|| {
            let known: Vec<&str> = scenario.classes.iter().map(|class| class.name.as_str()).collect();
            let why = format!("there is no class \"{}\"; there are: {}", name.get_ref(), known.join(", "));
            self.bad(&name.span(), why)
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawScenario {
    name: Spanned<String>,
    about: String,
    fleet: RawFleet,
    #[serde(default)]
    group: Vec<Spanned<RawGroup>>,
    #[serde(default)]
    class: Vec<Spanned<RawClass>>,
    network: Option<Spanned<RawNetwork>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFleet {
    devices: Spanned<usize>,
    hello_interval: Option<Spanned<Time>>,
    max_silence: Option<Spanned<Time>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGroup {
    name: String,
    share: Option<Share>,
    cell_capacity: Option<u16>,
    suite: Option<Spanned<String>>,
    rotation: Option<Time>,
    rotation_deadline: Option<Time>,
    cell_max_age: Option<Time>,
    join_window: Option<Time>,
    on_join: Option<RawOnJoin>,
    overlap: Option<Time>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawOnJoin {
    Rekey,
    Next,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawClass {
    name: String,
    share: Share,
    awake: Option<Time>,
    asleep: Option<Time>,
    slot: Option<Time>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNetwork {
    min_delay: Option<Time>,
    max_delay: Option<Time>,
    loss: Option<Share>,
    duplicates: Option<Share>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "kebab-case")]
enum What {
    Onboard,
    Churn,
    Revoke,
    Rekey,
    Rotate,
    PowerCut,
    RestartBroker,
    Network,
    Wait,
}

impl What {
    const fn name(self) -> &'static str {
        match self {
            Self::Onboard => "onboard",
            Self::Churn => "churn",
            Self::Revoke => "revoke",
            Self::Rekey => "rekey",
            Self::Rotate => "rotate",
            Self::PowerCut => "power-cut",
            Self::RestartBroker => "restart-broker",
            Self::Network => "network",
            Self::Wait => "wait",
        }
    }
}

#[derive(Deserialize)]
struct RawCommon {
    #[serde(rename = "do")]
    what: What,
    name: Option<String>,
    #[serde(flatten)]
    targets: RawTargets,
}

#[derive(Deserialize)]
struct RawTargets {
    current_within: Option<Time>,
    reconnect_ratio_at_most: Option<f64>,
    latency_at_most: Option<Time>,
    bytes_per_device_at_most: Option<Bytes>,
    bytes_per_device_and_day_at_most: Option<Bytes>,
    coordinator_cpu_at_most: Option<Time>,
    exposure_at_most: Option<Time>,
    key_age_at_most: Option<Time>,
}

impl RawTargets {
    const KEYS: &[&str] = &[
        "current_within",
        "reconnect_ratio_at_most",
        "latency_at_most",
        "bytes_per_device_at_most",
        "bytes_per_device_and_day_at_most",
        "coordinator_cpu_at_most",
        "exposure_at_most",
        "key_age_at_most",
    ];
}

impl RawCommon {
    fn targets(&self) -> Targets {
        let time = |time: Option<Time>| time.map(|time| time.0);
        let bytes = |bytes: Option<Bytes>| bytes.map(|bytes| bytes.0);
        let raw = &self.targets;
        Targets {
            current_within: time(raw.current_within),
            reconnect_ratio_at_most: raw.reconnect_ratio_at_most,
            latency_at_most: time(raw.latency_at_most),
            bytes_per_device_at_most: bytes(raw.bytes_per_device_at_most),
            bytes_per_device_and_day_at_most: bytes(raw.bytes_per_device_and_day_at_most),
            coordinator_cpu_at_most: time(raw.coordinator_cpu_at_most),
            exposure_at_most: time(raw.exposure_at_most),
            key_age_at_most: time(raw.key_age_at_most),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOnboard {
    count: Option<usize>,
    rate: Option<Rate>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawChurn {
    #[serde(rename = "for")]
    lasts: Time,
    joins: Rate,
    leaves: Rate,
    revocations: Rate,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRevoke {
    count: Option<usize>,
    share: Option<Share>,
    #[serde(default)]
    which: RawWhich,
    class: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
enum RawWhich {
    #[default]
    Spread,
    SameCells,
    Newest,
}

impl From<RawWhich> for Which {
    fn from(which: RawWhich) -> Self {
        match which {
            RawWhich::Spread => Self::Spread,
            RawWhich::SameCells => Self::SameCells,
            RawWhich::Newest => Self::Newest,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPowerCut {
    share: Share,
    #[serde(rename = "for")]
    lasts: Time,
    meanwhile: Option<RawMeanwhile>,
}

/// What happens while devices have no power.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawMeanwhile {
    Rekey,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRestart {
    away: Time,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWait {
    #[serde(rename = "for")]
    lasts: Time,
}

impl RawScenario {
    fn into_scenario(self, text: &Text<'_>, place: &Place) -> Result<Scenario, BadScenario> {
        let Self { name, about, fleet, group, class, network } = self;
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.get_ref().is_empty() || !name.get_ref().chars().all(is_plain) {
            return Err(text.bad(&name.span(), "a name is small letters, digits and hyphens".into()));
        }
        if group.len() > MAX_CELLS_PER_DEVICE || class.len() > MAX_PARTS {
            let why = format!("at most {MAX_CELLS_PER_DEVICE} [[group]] and {MAX_PARTS} [[class]]");
            return Err(text.bad(place, why));
        }
        let network = match network {
            Some(network) => {
                let place = network.span();
                network.into_inner().into_profile(*text, &place)?
            }
            None => NetworkProfile::default(),
        };
        let mut groups =
            group.into_iter().map(|group| read_group(*text, group)).collect::<Result<Vec<_>, _>>()?;
        if groups.is_empty() {
            groups.push(Group::named("all", Suite::default()));
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = groups.iter().find(|group| !names.insert(group.name.as_str())) {
            return Err(text.bad(place, format!("there are two groups \"{}\"", twice.name)));
        }
        Ok(Scenario {
            name: name.into_inner(),
            about,
            fleet: fleet.into_fleet(text)?,
            groups,
            classes: read_classes(text, place, class)?,
            network,
            phases: Vec::new(),
        })
    }
}

impl RawFleet {
    fn into_fleet(self, text: &Text<'_>) -> Result<Fleet, BadScenario> {
        let devices = *self.devices.get_ref();
        if !(1..=MAX_DEVICES).contains(&devices) {
            return Err(text.bad(&self.devices.span(), format!("devices must be 1 to {MAX_DEVICES}")));
        }
        let within = |time: Option<Spanned<Time>>, key: &str, default: u64, least: u64, most: u64| {
            let Some(time) = time else { return Ok(Duration::from_secs(default)) };
            let seconds = time.get_ref().0.as_secs();
            if (least..=most).contains(&seconds) {
                return Ok(time.get_ref().0);
            }
            Err(text.bad(&time.span(), format!("{key} must be {least}s to {}d", most / 86_400)))
        };
        let hello_interval = within(self.hello_interval, "hello_interval", 1_800, 10, 30 * 86_400)?;
        let max_silence = within(self.max_silence, "max_silence", 86_400, 60, 365 * 86_400)?;
        Ok(Fleet { devices, hello_interval, max_silence })
    }
}

impl RawNetwork {
    fn into_profile(self, text: Text<'_>, place: &Place) -> Result<NetworkProfile, BadScenario> {
        let default = NetworkProfile::default();
        let min_delay = self.min_delay.map_or(default.min_delay, |time| time.0);
        let max_delay = self.max_delay.map_or(default.max_delay.max(min_delay), |time| time.0);
        if min_delay.is_zero() || max_delay < min_delay || max_delay > Duration::from_secs(600) {
            return Err(text.bad(place, "delays must be 1ms to 600s, and min_delay at most max_delay".into()));
        }
        let (loss, duplicates) =
            (self.loss.map_or(0.0, |loss| loss.0), self.duplicates.map_or(0.0, |duplicates| duplicates.0));
        if loss > 0.95 {
            return Err(text.bad(place, "loss must be at most 95%".into()));
        }
        Ok(NetworkProfile { min_delay, max_delay, loss, duplicates })
    }
}

impl Group {
    fn named(name: &str, suite: Suite) -> Self {
        let day = Duration::from_secs(86_400);
        Self {
            name: name.to_owned(),
            share: 1.0,
            cell_capacity: suite.default_cell_capacity(),
            suite,
            rotation: None,
            rotation_deadline: Duration::from_secs(3_600),
            cell_max_age: 30 * day,
            join_window: Duration::from_secs(1),
            rekeys_on_join: true,
            overlap: Duration::from_secs(30),
        }
    }
}

fn read_group(text: Text<'_>, group: Spanned<RawGroup>) -> Result<Group, BadScenario> {
    let place = group.span();
    let raw = group.into_inner();
    let suite = match &raw.suite {
        Some(suite) => read_suite(text, suite)?,
        None => Suite::default(),
    };
    let default = Group::named(&raw.name, suite);
    let or = |time: Option<Time>, default: Duration| time.map_or(default, |time| time.0);
    let group = Group {
        share: raw.share.map_or(1.0, |share| share.0),
        cell_capacity: raw.cell_capacity.unwrap_or(default.cell_capacity),
        rotation: raw.rotation.map(|time| time.0),
        rotation_deadline: or(raw.rotation_deadline, default.rotation_deadline),
        cell_max_age: or(raw.cell_max_age, default.cell_max_age),
        join_window: or(raw.join_window, default.join_window),
        rekeys_on_join: !matches!(raw.on_join, Some(RawOnJoin::Next)),
        overlap: or(raw.overlap, default.overlap),
        ..default
    };
    let seconds = |time: Duration| time.as_secs();
    let bad = |why: String| Err(text.bad(&place, format!("group \"{}\": {why}", group.name)));
    if group.name.is_empty() || group.name.len() > 60 {
        return bad("its name must be 1 to 60 bytes".into());
    }
    let max = suite.max_cell_capacity();
    if !(MIN_CELL_CAPACITY..=max).contains(&group.cell_capacity) {
        return bad(format!("cell_capacity must be {MIN_CELL_CAPACITY} to {max} with the suite {suite}"));
    }
    if group.rotation.is_some_and(|time| seconds(time) < 10) {
        return bad("rotation must be at least 10s, or be left out".into());
    }
    if seconds(group.cell_max_age) < 60 || seconds(group.join_window) > 60 {
        return bad("cell_max_age must be at least 60s, and join_window at most 60s".into());
    }
    Ok(group)
}

fn read_suite(text: Text<'_>, name: &Spanned<String>) -> Result<Suite, BadScenario> {
    name.get_ref().parse().map_err(|why| text.bad(&name.span(), why))
}

fn read_classes(
    text: &Text<'_>,
    place: &Place,
    classes: Vec<Spanned<RawClass>>,
) -> Result<Vec<Class>, BadScenario> {
    if classes.is_empty() {
        return Ok(vec![Class { name: "always-on".into(), share: 1.0, sleep: None }]);
    }
    let mut read = Vec::new();
    for class in classes {
        let place = class.span();
        let raw = class.into_inner();
        let sleep = match (raw.awake, raw.asleep) {
            (None, None) if raw.slot.is_none() => None,
            (None, None) => return Err(text.bad(&place, "slot is for a class that sleeps".into())),
            (Some(awake), Some(asleep)) if awake.0 >= Duration::from_secs(1) => {
                let slot = raw.slot.map_or(Duration::ZERO, |slot| slot.0);
                Some(Sleep { awake: awake.0, asleep: asleep.0, slot })
            }
            (Some(_), Some(_)) => return Err(text.bad(&place, "awake must be at least 1s".into())),
            (Some(_), None) | (None, Some(_)) => {
                return Err(text.bad(&place, "a class that sleeps says both awake and asleep".into()));
            }
        };
        read.push(Class { name: raw.name, share: raw.share.0, sleep });
    }
    let whole: f64 = read.iter().map(|class| class.share).sum();
    if (whole - 1.0).abs() > 1e-6 {
        return Err(
            text.bad(place, format!("the shares of all classes must be 100%, not {:.4}%", whole * 100.0))
        );
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "name = \"x\"\nabout = \"y\"\n[fleet]\ndevices = 10\n";

    fn refused(rest: &str) -> String {
        Scenario::from_toml(&format!("{HEAD}{rest}")).expect_err("it is no scenario").to_string()
    }

    #[test]
    fn an_unknown_key_is_refused_by_its_name_and_line() {
        let told = refused("colour = 3\n[[phase]]\ndo = \"rekey\"\n");
        assert!(
            told.contains("line 5") && told.contains("`colour`") && told.contains("`max_silence`"),
            "{told}"
        );
    }

    #[test]
    fn a_key_of_another_phase_is_refused_by_its_name_and_line() {
        let told = refused("[[phase]]\ndo = \"wait\"\nfor = \"1s\"\nrate = \"3/s\"\n");
        assert!(told.contains("line 8") && told.contains("`rate`"), "{told}");
    }

    #[test]
    fn what_is_held_against_a_mere_reconnect_is_a_power_cut() {
        let told = refused("[[phase]]\ndo = \"rekey\"\nreconnect_ratio_at_most = 2.0\n");
        assert!(told.contains("line 5") && told.contains("power-cut"), "{told}");
        let cut = "[[phase]]\ndo = \"power-cut\"\nshare = \"50%\"\nfor = \"1m\"\n";
        let told = refused(&format!("{cut}reconnect_ratio_at_most = 0\n"));
        assert!(told.contains("more than nothing"), "{told}");
        let told = refused(&format!("{cut}meanwhile = \"dance\"\n"));
        assert!(told.contains("line 9") && told.contains("`rekey`"), "{told}");
    }

    #[test]
    fn a_quantity_without_its_unit_is_told_what_would_be_right() {
        let told = refused("[[phase]]\ndo = \"wait\"\nfor = \"30\"\n");
        assert!(told.contains("line 7") && told.contains("such as"), "{told}");
        let told = refused("[[phase]]\ndo = \"wait\"\nfor = \"1s\"\ncurrent_within = 5\n");
        assert!(told.contains("such as"), "{told}");
    }

    #[test]
    fn shares_that_are_no_whole_are_refused() {
        let told = refused("[[class]]\nname = \"a\"\nshare = \"40%\"\n[[phase]]\ndo = \"rekey\"\n");
        assert!(told.contains("100%"), "{told}");
    }

    #[test]
    fn a_class_that_is_not_there_is_refused_with_those_that_are() {
        let told = refused("[[phase]]\ndo = \"revoke\"\ncount = 1\nwhich = \"spread\"\nclass = \"boats\"\n");
        assert!(told.contains("line 9") && told.contains("always-on"), "{told}");
    }

    #[test]
    fn a_suite_that_nobody_knows_is_refused_and_a_capacity_beyond_its_own() {
        let told = refused("[[group]]\nname = \"g\"\nsuite = \"rot13\"\n[[phase]]\ndo = \"rekey\"\n");
        assert!(told.contains("line 7") && told.contains("aes128gcm"), "{told}");
        let group = "[[group]]\nname = \"g\"\nsuite = \"xwing-chacha20poly1305\"\n";
        let phase = "[[phase]]\ndo = \"rekey\"\n";
        let scenario = Scenario::from_toml(&format!("{HEAD}{group}{phase}")).expect("it is a scenario");
        assert_eq!(scenario.groups[0].cell_capacity, Suite::XWingChaCha20Poly1305.default_cell_capacity());
        let told = refused(&format!("{group}cell_capacity = 64\n{phase}"));
        assert!(told.contains("8 to 24") && told.contains("xwing"), "{told}");
    }
}
