//! The attempts, one after the other, and what came of them.

use std::collections::BTreeMap;
use std::thread;

use anyhow::{Result, ensure};
use fleetkey_identity::Role;

use crate::cast::{Cast, Papers};
use crate::client::{Client, Hello, Level, Target};

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Every attempt, in order.
    pub tried: Vec<String>,
    /// Those that got through, and how that showed.
    pub got_through: BTreeMap<String, String>,
}

impl Report {
    /// The names of the attempts that got through.
    pub fn names(&self) -> Vec<&str> {
        self.got_through.keys().map(String::as_str).collect()
    }

    fn note(&mut self, name: &str, evidence: Option<String>) {
        self.tried.push(name.to_owned());
        if let Some(evidence) = evidence {
            self.got_through.insert(name.to_owned(), evidence);
        }
    }
}

/// Runs the whole script.
///
/// # Errors
/// When the honest parties cannot do what they may: then nothing is proved.
pub fn run(target: &Target, level: Level, cast: &Cast) -> Result<Report> {
    run_across(target, target, level, cast)
}

/// The same where a broker is several nodes: the honest parties are connected to one, the intruder to another.
///
/// # Errors
/// As [`run`].
pub fn run_across(target: &Target, hostile: &Target, level: Level, cast: &Cast) -> Result<Report> {
    let mut stage = Stage::new(target, hostile, level, cast)?;
    let mut report = Report::default();
    connect_attempts(&mut stage, &mut report)?;
    subscribe_attempts(&mut stage, &mut report)?;
    publish_attempts(&mut stage, &mut report)?;
    stage.round()?;
    Ok(report)
}

/// The honest parties, and what the intruder comes with.
struct Stage<'a> {
    target: &'a Target,
    /// Where the intruder comes in.
    hostile: &'a Target,
    level: Level,
    cast: &'a Cast,
    intruder: Papers,
    victim_papers: Papers,
    coordinator_papers: Papers,
    coordinator: Client,
    victim: Client,
    marks: u32,
}

impl<'a> Stage<'a> {
    /// Connects the honest parties, and checks that they hear each other.
    fn new(target: &'a Target, hostile: &'a Target, level: Level, cast: &'a Cast) -> Result<Self> {
        let intruder = cast.papers(&Role::Device(cast.intruder))?;
        let victim_papers = cast.papers(&Role::Device(cast.victim))?;
        let coordinator_papers = cast.coordinator()?;
        let coordinator = coordinator(target, level, cast, &coordinator_papers)?;
        let victim = victim(target, level, cast, &victim_papers)?;
        let mut stage = Self {
            target,
            hostile,
            level,
            cast,
            intruder,
            victim_papers,
            coordinator_papers,
            coordinator,
            victim,
            marks: 0,
        };
        stage.round()?;
        Ok(stage)
    }

    fn mark(&mut self) -> String {
        self.marks += 1;
        format!("mark-{:04}", self.marks)
    }

    /// A message on every topic, heard by whom it is for: what was sent before has arrived too, as far as it ever will.
    fn round(&mut self) -> Result<()> {
        let mark = self.mark();
        let victim = self.cast.victim;
        for topic in [
            self.cast.down(victim),
            self.cast.cell_topic(self.cast.cell),
            self.cast.cell_topic(self.cast.other_cell),
        ] {
            let payload = format!("{mark} {topic}");
            self.coordinator.publish(0x32, topic.as_bytes(), &[], payload.as_bytes());
            self.victim.expect(&payload, |arrived| arrived.payload == payload.as_bytes())?;
        }
        let up = self.cast.up(victim);
        let payload = format!("{mark} {up}");
        self.victim.publish(0x32, up.as_bytes(), &[], payload.as_bytes());
        self.coordinator.expect(&payload, |arrived| arrived.payload == payload.as_bytes())?;
        thread::sleep(self.target.settle);
        Ok(())
    }

    /// Whether an honest session has ended; it is begun anew.
    fn harmed(&mut self) -> Result<Option<String>> {
        if self.victim.is_closed() {
            self.victim = victim(self.target, self.level, self.cast, &self.victim_papers)?;
            return Ok(Some("the victim's session ended".to_owned()));
        }
        if self.coordinator.is_closed() {
            self.coordinator = coordinator(self.target, self.level, self.cast, &self.coordinator_papers)?;
            return Ok(Some("the coordinator's session ended".to_owned()));
        }
        Ok(None)
    }

    /// Who has heard something with this mark in it.
    fn heard(&mut self, mark: &str) -> Option<String> {
        let says = |client: &mut Client| {
            let found = client.arrived().iter().find(|arrived| contains(&arrived.payload, mark.as_bytes()));
            found.map(|arrived| arrived.topic.clone())
        };
        if let Some(topic) = says(&mut self.coordinator) {
            return Some(format!("the coordinator heard it on {topic}"));
        }
        says(&mut self.victim).map(|topic| format!("the victim heard it on {topic}"))
    }

    /// Everything the intruder heard that is not its own to hear.
    fn overheard(&self, client: &mut Client) -> Option<String> {
        let mut own = vec![self.cast.cell_topic(self.cast.cell), self.cast.down(self.cast.intruder)];
        if self.target.has_open_cells {
            own.push(self.cast.cell_topic(self.cast.other_cell));
        }
        let stolen = client.arrived().iter().find(|arrived| !own.contains(&arrived.topic))?;
        Some(format!("the intruder heard {}", stolen.topic))
    }

    fn enter(&self, client_id: &str, hello: Hello<'_>) -> Result<(Client, Option<u8>)> {
        Client::connect(self.hostile, self.level, Some(&self.intruder), client_id, hello)
    }

    /// A connection of the intruder's, as itself.
    fn enter_as_itself(&self) -> Result<Client> {
        Client::honest(self.hostile, self.level, &self.intruder, &self.cast.intruder.to_string())
    }

    /// Tries on a connection that was let in what only others may do.
    fn exploit(&mut self, client: &mut Client) -> Result<Option<String>> {
        let (victim, other_cell) = (self.cast.victim, self.cast.other_cell);
        for filter in [
            self.cast.down(victim),
            format!("fk/{}/dev/+/up", self.cast.fleet),
            self.cast.cell_topic(other_cell),
        ] {
            if client.subscribe(filter.as_bytes(), 1).is_none() {
                break;
            }
        }
        let mark = self.mark();
        for topic in [self.cast.up(victim), self.cast.cell_topic(other_cell)] {
            client.publish(0x30, topic.as_bytes(), &[], mark.as_bytes());
        }
        client.flush();
        if let Some(harm) = self.harmed()? {
            return Ok(Some(harm));
        }
        self.round()?;
        Ok(self.heard(&mark).or_else(|| self.overheard(client)))
    }
}

/// Comes in with papers that should open no door, or as somebody else.
fn connect_attempts(stage: &mut Stage<'_>, report: &mut Report) -> Result<()> {
    let let_in = |code: Option<u8>| (code == Some(0)).then(|| "it was let in".to_owned());
    let victim = stage.cast.victim.to_string();
    let (_, code) = Client::connect(stage.hostile, stage.level, None, &victim, Hello::default())?;
    report.note("no certificate", let_in(code));
    for (name, papers, client_id) in stage.cast.bad_papers()? {
        let (_, code) =
            Client::connect(stage.hostile, stage.level, Some(&papers), &client_id, Hello::default())?;
        let harm = stage.harmed()?;
        report.note(name, let_in(code).or(harm));
    }
    for (name, papers) in stage.cast.idle_roles()? {
        let (mut client, code) =
            Client::connect(stage.hostile, stage.level, Some(&papers), "idle", Hello::default())?;
        let evidence = if code == Some(0) { stage.exploit(&mut client)? } else { None };
        report.note(name, evidence);
    }
    let as_victim = Hello { user: Some(&victim), password: Some("x"), will: None };
    let as_coordinator = Hello { user: Some("coordinator:1"), password: Some("x"), will: None };
    let named_only = Hello { user: Some(&victim), password: None, will: None };
    for (name, client_id, hello) in [
        ("another's client id", victim.as_str(), Hello::default()),
        ("another's client id in capitals", &victim.to_uppercase(), Hello::default()),
        ("the coordinator's client id", "coordinator-intruder", Hello::default()),
        ("another's user name and a password", &victim, as_victim),
        ("another's user name alone", &victim, named_only),
        ("the coordinator's user name and a password", "coordinator-intruder", as_coordinator),
        ("an empty client id", "", Hello::default()),
    ] {
        let (mut client, code) = stage.enter(client_id, hello)?;
        let harm = stage.harmed()?;
        let evidence = if code == Some(0) { harm.or(stage.exploit(&mut client)?) } else { harm };
        report.note(name, evidence);
    }
    Ok(())
}

/// Subscribes to what is not its own.
fn subscribe_attempts(stage: &mut Stage<'_>, report: &mut Report) -> Result<()> {
    let cast = stage.cast;
    let fleet = cast.fleet;
    let (down, up) = (cast.down(cast.victim), cast.up(cast.victim));
    let other_cell = cast.cell_topic(cast.other_cell);
    let bytes = |text: &str| text.as_bytes().to_vec();
    let filters: Vec<(&str, Vec<u8>)> = vec![
        ("subscribe to another's down", bytes(&down)),
        ("subscribe to another's up", bytes(&up)),
        ("subscribe to another cell", bytes(&other_cell)),
        ("subscribe to every up", bytes(&format!("fk/{fleet}/dev/+/up"))),
        ("subscribe to every down", bytes(&format!("fk/{fleet}/dev/+/down"))),
        ("subscribe to every cell", bytes(&format!("fk/{fleet}/cell/+"))),
        ("subscribe to #", bytes("#")),
        ("subscribe to +/#", bytes("+/#")),
        ("subscribe to fk/#", bytes("fk/#")),
        ("subscribe to the fleet", bytes(&format!("fk/{fleet}/#"))),
        ("subscribe to five levels of anything", bytes("+/+/+/+/+")),
        ("subscribe to four levels of anything", bytes("+/+/+/+")),
        ("subscribe to another's topics", bytes(&format!("fk/{fleet}/dev/{}/#", cast.victim))),
        ("subscribe to a share of every up", bytes(&format!("$share/g/fk/{fleet}/dev/+/up"))),
        ("subscribe to a share of another's down", bytes(&format!("$share/g/{down}"))),
        ("subscribe to a share of another cell", bytes(&format!("$share/g/{other_cell}"))),
        ("subscribe to a queue of another's down", bytes(&format!("$queue/{down}"))),
        ("subscribe to $SYS", bytes("$SYS/#")),
        ("subscribe to every level of $SYS", bytes("$SYS/broker/+/#")),
        ("subscribe in dots", bytes(&down.replace('/', "."))),
        ("subscribe in dots and stars", bytes(&format!("fk.{fleet}.dev.*.up"))),
        ("subscribe in capitals", bytes(&down.to_uppercase())),
        ("subscribe with an end more", bytes(&format!("{down}/"))),
        ("subscribe behind a slash", bytes(&format!("/{down}"))),
        ("subscribe behind a byte order mark", bytes(&format!("\u{feff}{down}"))),
        ("subscribe with a null", bytes(&format!("{down}\0"))),
        ("subscribe in letters that look alike", bytes(&down.replace('d', "\u{501}"))),
        ("subscribe in wide letters", bytes(&format!("\u{ff46}\u{ff4b}/{fleet}/#"))),
        ("subscribe in what is no UTF-8", [b"\xc0\xaf".as_slice(), down.as_bytes()].concat()),
        ("subscribe in surrogates", [b"\xed\xa0\x80/".as_slice(), b"#"].concat()),
    ];
    for (name, filter) in filters {
        let mut client = stage.enter_as_itself()?;
        // What it may hear, so that it is there to hear more.
        client.subscribe(cast.cell_topic(cast.cell).as_bytes(), 1);
        client.subscribe(&filter, 1);
        stage.round()?;
        client.flush();
        let overheard = stage.overheard(&mut client);
        let harm = stage.harmed()?;
        report.note(name, overheard.or(harm));
        client.vanish();
    }
    Ok(())
}

/// How it shows that a message got through.
#[derive(Clone, Copy)]
enum Shows {
    /// Somebody hears it.
    Heard,
    /// Somebody hears it who comes later.
    Kept,
}

/// Publishes where it may not, and in ways it may not.
fn publish_attempts(stage: &mut Stage<'_>, report: &mut Report) -> Result<()> {
    let cast = stage.cast;
    let fleet = cast.fleet;
    let (own_up, up, down) = (cast.up(cast.intruder), cast.up(cast.victim), cast.down(cast.victim));
    let (cell, other_cell) = (cast.cell_topic(cast.cell), cast.cell_topic(cast.other_cell));
    let bytes = |text: &str| text.as_bytes().to_vec();
    let attempts: Vec<(&str, u8, Vec<u8>, usize, Shows)> = vec![
        ("publish to its cell", 0x32, bytes(&cell), 0, Shows::Heard),
        ("publish to another cell", 0x32, bytes(&other_cell), 0, Shows::Heard),
        ("publish to another's up", 0x32, bytes(&up), 0, Shows::Heard),
        ("publish to another's up at QoS 0", 0x30, bytes(&up), 0, Shows::Heard),
        ("publish to another's down", 0x32, bytes(&down), 0, Shows::Heard),
        ("publish to an up of nobody's", 0x32, bytes(&format!("fk/{fleet}/dev/nobody/up")), 0, Shows::Heard),
        ("publish to an empty up", 0x32, bytes(&format!("fk/{fleet}/dev//up")), 0, Shows::Heard),
        ("publish in dots", 0x32, bytes(&up.replace('/', ".")), 0, Shows::Heard),
        ("publish in half dots", 0x32, bytes(&format!("fk/{fleet}/dev.{}.up", cast.victim)), 0, Shows::Heard),
        ("publish to a wildcard", 0x32, bytes(&format!("fk/{fleet}/dev/+/up")), 0, Shows::Heard),
        ("publish to every topic", 0x32, bytes("#"), 0, Shows::Heard),
        ("publish to a share", 0x32, bytes(&format!("$share/g/{up}")), 0, Shows::Heard),
        ("publish to another's up with a null", 0x32, bytes(&format!("{up}\0")), 0, Shows::Heard),
        ("publish behind a byte order mark", 0x32, bytes(&format!("\u{feff}{up}")), 0, Shows::Heard),
        ("publish to what is no UTF-8", 0x32, [up.as_bytes(), b"\xff"].concat(), 0, Shows::Heard),
        ("publish to a topic that starts beyond ASCII", 0x32, bytes("\u{e9}/x"), 0, Shows::Heard),
        ("publish another's up to be kept", 0x33, bytes(&up), 0, Shows::Heard),
        ("publish its own up to be kept", 0x33, bytes(&own_up), 0, Shows::Kept),
        ("publish at QoS 2", 0x34, bytes(&own_up), 0, Shows::Heard),
        ("publish at QoS 3", 0x36, bytes(&own_up), 0, Shows::Heard),
        ("publish 200,000 bytes", 0x32, bytes(&own_up), 200_000, Shows::Heard),
    ];
    for (name, first, topic, more, shows) in attempts {
        let mut client = stage.enter_as_itself()?;
        let mark = stage.mark();
        let payload = [mark.as_bytes(), &vec![b'.'; more]].concat();
        client.publish(first, &topic, &[], &payload);
        client.flush();
        let harm = stage.harmed()?;
        stage.round()?;
        let evidence = match shows {
            Shows::Heard => stage.heard(&mark),
            Shows::Kept => kept(stage, &mark)?,
        };
        report.note(name, harm.or(evidence));
        client.vanish();
    }
    if stage.level == Level::V5 {
        let mut client = stage.enter_as_itself()?;
        let mark = stage.mark();
        // Its own topic gives the alias its meaning, and another's changes it.
        client.publish(0x32, own_up.as_bytes(), &[0x23, 0, 1], b"alias");
        client.publish(0x32, up.as_bytes(), &[0x23, 0, 1], b"alias");
        client.publish(0x32, b"", &[0x23, 0, 1], mark.as_bytes());
        client.flush();
        let harm = stage.harmed()?;
        stage.round()?;
        let evidence = stage.heard(&mark);
        report.note("publish to an alias of another's up", harm.or(evidence));
    }
    for (name, topic) in [
        ("a will to another's up", &up),
        ("a will to its cell", &cell),
        ("a will to another's down", &down),
        ("a will to its own up", &own_up),
    ] {
        let mark = stage.mark();
        let hello = Hello { will: Some((topic, &mark)), ..Hello::default() };
        let (client, _) = stage.enter(&cast.intruder.to_string(), hello)?;
        client.vanish();
        stage.round()?;
        stage.round()?;
        let harm = stage.harmed()?;
        let evidence = stage.heard(&mark);
        report.note(name, harm.or(evidence));
    }
    ensure!(!stage.victim.is_closed(), "the victim's session ended");
    Ok(())
}

/// Whether a coordinator that comes later is given it: the honest one, which may be the only one of its name.
fn kept(stage: &mut Stage<'_>, mark: &str) -> Result<Option<String>> {
    stage.coordinator = coordinator(stage.target, stage.level, stage.cast, &stage.coordinator_papers)?;
    stage.round()?;
    let found = stage.heard(mark);
    Ok(found.map(|_| "a coordinator that came later heard it".to_owned()))
}

fn coordinator(target: &Target, level: Level, cast: &Cast, papers: &Papers) -> Result<Client> {
    let mut client = Client::honest(target, level, papers, "coordinator-honest")?;
    let code = client.subscribe(format!("fk/{}/dev/+/up", cast.fleet).as_bytes(), 1);
    ensure!(code == Some(1) || code == Some(0), "the coordinator may not subscribe: {code:?}");
    // Other nodes may hear of it a moment after it was granted.
    thread::sleep(target.settle);
    Ok(client)
}

fn victim(target: &Target, level: Level, cast: &Cast, papers: &Papers) -> Result<Client> {
    let mut client = Client::honest(target, level, papers, &cast.victim.to_string())?;
    let topics = [cast.down(cast.victim), cast.cell_topic(cast.cell), cast.cell_topic(cast.other_cell)];
    for topic in topics {
        let code = client.subscribe(topic.as_bytes(), 1);
        ensure!(code == Some(1) || code == Some(0), "the victim may not subscribe to {topic}: {code:?}");
    }
    thread::sleep(target.settle);
    Ok(client)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
