//! `fleetkey device provision --csv`: a bundle for each row of a list.
//!
//! Every row is checked before the first device is made, and what is wrong is told by its line. The keys are made here: a
//! key is on the disk before its device is enrolled, so that whoever was interrupted gives the same command again, and
//! ends with the devices that the list names, no more.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use fleetkey_coordinator::api::{Bundle, DeviceList, NewDevice};
use fleetkey_coordinator::{check_bundle_directory, write_bundle, write_private};
use fleetkey_coordinator_core::Labels;
use fleetkey_identity::{IdentityKey, Role, chain_from_pem, read_certificate};
use fleetkey_vault::files;
use fleetkey_wire::DeviceId;
use fleetkey_wire::limits::MAX_GROUP_NAME_BYTES;
use rand_core::OsRng;
use zeroize::Zeroizing;

use super::client::Client;
use super::device::is_plain;
use super::show;

/// A list of a million devices fits.
const MAX_LIST_BYTES: u64 = 256 * 1024 * 1024;
/// What is wrong is told of so many lines.
const MAX_TOLD: usize = 20;
/// How often it is told how far things are.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// What a bundle consists of.
const BUNDLE: [&str; 6] =
    ["agent.toml", "coordinator.crt", "device.crt", "device.key", "fleet-roots.pem", "master.key"];

/// A list that was read, and a directory to make bundles in.
pub(crate) struct ProvisionList {
    directory: PathBuf,
    rows: Vec<Row>,
}

struct Row {
    line: u64,
    name: String,
    id: Option<DeviceId>,
    labels: Option<String>,
}

/// What there is of a row's device on the disk.
enum Found {
    /// Its bundle, whole.
    Bundle,
    /// Its key, from an attempt that was interrupted.
    Begun,
    /// Nothing.
    Nothing,
}

/// Things that are wrong, by their lines.
#[derive(Default)]
struct Wrong(Vec<(u64, String)>);

impl Wrong {
    fn add(&mut self, line: u64, why: impl Into<String>) {
        self.0.push((line, why.into()));
    }

    fn check(self, path: &str) -> anyhow::Result<()> {
        let Some(more) = self.0.len().checked_sub(1) else { return Ok(()) };
        let told: Vec<String> =
            self.0.iter().take(MAX_TOLD).map(|(line, why)| format!("line {line}: {why}")).collect();
        let rest =
            if more >= MAX_TOLD { format!("; and {} more", more + 1 - MAX_TOLD) } else { String::new() };
        bail!("{path}: nothing was made: {}{rest}", told.join("; "))
    }
}

impl ProvisionList {
    /// Reads a list, from standard input where `path` is `-`.
    pub(crate) fn read(path: &Path, directory: PathBuf) -> anyhow::Result<Self> {
        let mut text = Vec::new();
        if path == Path::new("-") {
            io::stdin().lock().take(MAX_LIST_BYTES).read_to_end(&mut text).context("read standard input")?;
        } else {
            let file = fs::File::open(path).with_context(|| format!("read {}", path.display()))?;
            file.take(MAX_LIST_BYTES)
                .read_to_end(&mut text)
                .with_context(|| format!("read {}", path.display()))?;
        }
        let shown = path.display().to_string();
        let mut wrong = Wrong::default();
        let rows = parse(&text, &mut wrong);
        wrong.check(&shown)?;
        if rows.is_empty() {
            bail!("{shown} lists no device");
        }
        Ok(Self { directory, rows })
    }

    /// Makes what is missing.
    pub(crate) fn run(self, client: &Client, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
        let found = self.look()?;
        self.check_names(client, &found)?;
        let (mut made, mut passed_over) = (Vec::new(), Vec::new());
        let mut told = Instant::now();
        for (done, (row, found)) in self.rows.iter().zip(&found).enumerate() {
            if matches!(found, Found::Bundle) {
                // A run that was cut off just before its end has left the key beside the bundle, too.
                match fs::remove_file(self.begun(row)) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        bail!("delete {}: {error}", self.begun(row).display())
                    }
                    Ok(()) | Err(_) => {}
                }
                if !json {
                    writeln!(out, "{} is there already: passed over", row.name)?;
                }
                passed_over.push(row.name.as_str());
                continue;
            }
            let at = || format!("line {}: {}", row.line, row.name);
            let (device, config) = self.make(row, client).with_context(at)?;
            if !json {
                writeln!(out, "device {} is {device}", row.name)?;
            }
            made.push(serde_json::json!({ "device": device, "name": row.name, "config": config }));
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                // It is no more than a courtesy.
                let _ = writeln!(io::stderr(), "{} of {}", done + 1, self.rows.len());
            }
        }
        if json {
            return show::json(out, &serde_json::json!({ "made": made, "passed_over": passed_over }));
        }
        let bundles = show::count(made.len() as u64, "bundle");
        writeln!(out, "made {bundles} in {}, passed over {}", self.directory.display(), passed_over.len())?;
        Ok(())
    }

    /// What there is already. What is there and is no bundle of that device is wrong.
    fn look(&self) -> anyhow::Result<Vec<Found>> {
        let (mut wrong, mut all) = (Wrong::default(), Vec::new());
        for row in &self.rows {
            match self.look_for(row) {
                Ok(found) => all.push(found),
                Err(error) => wrong.add(row.line, format!("{error:#}")),
            }
        }
        wrong.check(&self.directory.display().to_string())?;
        Ok(all)
    }

    fn look_for(&self, row: &Row) -> anyhow::Result<Found> {
        let bundle = self.bundle(row);
        let is_empty = fs::read_dir(&bundle).map(|mut entries| entries.next().is_none()).unwrap_or(true);
        if is_empty && !bundle.is_file() {
            return Ok(if self.begun(row).exists() { Found::Begun } else { Found::Nothing });
        }
        if let Some(missing) = BUNDLE.iter().find(|name| !bundle.join(name).is_file()) {
            bail!("{} is there, and is no whole bundle: it has no {missing}", bundle.display());
        }
        let device = device_of(&bundle.join("device.crt"))?;
        match row.id {
            Some(id) if id != device => bail!("{} is the bundle of {device}, not of {id}", bundle.display()),
            Some(_) | None => Ok(Found::Bundle),
        }
    }

    /// Names and ids of devices that are enrolled already are wrong, unless it is this list that enrolled them.
    fn check_names(&self, client: &Client, found: &[Found]) -> anyhow::Result<()> {
        let list: DeviceList =
            serde_json::from_value(client.get("/v1/devices")?).context("read the answer")?;
        let names: BTreeMap<&str, DeviceId> =
            list.devices.iter().map(|device| (device.name.as_str(), device.id)).collect();
        let ids: BTreeMap<DeviceId, &str> = names.iter().map(|(name, id)| (*id, *name)).collect();
        let mut wrong = Wrong::default();
        for (row, found) in self.rows.iter().zip(found) {
            if !matches!(found, Found::Nothing) {
                continue;
            }
            if names.contains_key(row.name.as_str()) {
                wrong.add(
                    row.line,
                    format!("a device is named {:?} already, and its bundle is not here", row.name),
                );
            } else if let Some(name) = row.id.and_then(|id| ids.get(&id)) {
                wrong.add(row.line, format!("the id is that of device {name:?}"));
            }
        }
        wrong.check(&self.directory.display().to_string())
    }

    fn make(&self, row: &Row, client: &Client) -> anyhow::Result<(DeviceId, PathBuf)> {
        let directory = self.bundle(row);
        check_bundle_directory(&directory)?;
        let begun = self.begun(row);
        let (id, key) = self.key(row, &begun)?;
        let new = NewDevice {
            name: row.name.clone(),
            id: Some(id),
            public_key: Some(hex::encode(key.public_key())),
            labels: row.labels.clone(),
        };
        let answer = client.post("/v1/devices", &new)?;
        let mut bundle: Bundle = serde_json::from_value(answer).context("read the answer")?;
        bundle.private_key = key.to_pkcs8_pem().to_string();
        let config = write_bundle(&directory, &bundle)?;
        fs::remove_file(&begun).with_context(|| format!("delete {}", begun.display()))?;
        Ok((id, config))
    }

    /// The device's id and key: those of an attempt that was interrupted, or new ones.
    fn key(&self, row: &Row, begun: &Path) -> anyhow::Result<(DeviceId, IdentityKey)> {
        if begun.exists() {
            let text = files::read_secret(begun)?;
            let broken = || format!("{} is not what was written there: delete it", begun.display());
            let (id, pem) = text.split_once('\n').with_context(broken)?;
            let id: DeviceId = id.parse().ok().with_context(broken)?;
            if row.id.is_some_and(|listed| listed != id) {
                bail!("{} is of {id}: the list had another id when this was begun", begun.display());
            }
            return Ok((id, IdentityKey::from_pkcs8_pem(pem).with_context(broken)?));
        }
        let id = row.id.unwrap_or_else(|| DeviceId::random(&mut OsRng));
        let key = IdentityKey::generate(&mut OsRng);
        let text = Zeroizing::new(format!("{id}\n{}", *key.to_pkcs8_pem()));
        write_private(begun, text.as_bytes(), false)?;
        Ok((id, key))
    }

    fn bundle(&self, row: &Row) -> PathBuf {
        self.directory.join(&row.name)
    }

    fn begun(&self, row: &Row) -> PathBuf {
        self.directory.join(format!(".{}.begun", row.name))
    }
}

fn device_of(certificate: &Path) -> anyhow::Result<DeviceId> {
    let shown = || certificate.display().to_string();
    let chain = chain_from_pem(&files::read(certificate)?).with_context(shown)?;
    let leaf = chain.first().with_context(shown)?;
    match read_certificate(leaf).with_context(shown)?.role {
        Role::Device(device) => Ok(device),
        role @ (Role::Coordinator { .. } | Role::Broker | Role::Registrar | Role::Operator { .. }) => {
            bail!("{} is of {role}, not of a device", shown())
        }
    }
}

/// The rows of a list; what is wrong with it is put aside.
fn parse(text: &[u8], wrong: &mut Wrong) -> Vec<Row> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).flexible(true).from_reader(text);
    let columns = match reader.headers() {
        Ok(columns) => columns.clone(),
        Err(error) => {
            wrong.add(1, error.to_string());
            return Vec::new();
        }
    };
    for (at, column) in columns.iter().enumerate() {
        if !["name", "id", "labels"].contains(&column) {
            wrong.add(1, format!("there is no column {column:?}: the header is name,id,labels"));
        } else if columns.iter().take(at).any(|before| before == column) {
            wrong.add(1, format!("the column {column} is there twice"));
        }
    }
    if columns.iter().all(|column| column != "name") {
        wrong.add(1, "there is no column name: the header is name,id,labels");
    }
    if !wrong.0.is_empty() {
        return Vec::new();
    }
    let (mut rows, mut names, mut ids) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    let mut lines = Lines { text, byte: 0, line: 1 };
    for record in reader.records() {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                wrong.add(lines.of(error.position()), error.to_string());
                continue;
            }
        };
        let line = lines.of(record.position());
        if record.len() > columns.len() {
            let why = format!("{} fields, and {} columns: labels go in quotes", record.len(), columns.len());
            wrong.add(line, why);
            continue;
        }
        let row = match read_row(&columns, &record, line) {
            Ok(row) => row,
            Err(why) => {
                wrong.add(line, why);
                continue;
            }
        };
        if let Some(before) = names.insert(row.name.clone(), line) {
            wrong.add(line, format!("{:?} is named in line {before} too", row.name));
        }
        if let Some(before) = row.id.and_then(|id| ids.insert(id, line)) {
            wrong.add(line, format!("the id is in line {before} too"));
        }
        rows.push(row);
    }
    rows
}

/// Counts lines: a record's own position is where the one before ended, before blank lines and half of a CR LF.
struct Lines<'a> {
    text: &'a [u8],
    byte: usize,
    line: u64,
}

impl Lines<'_> {
    fn of(&mut self, position: Option<&csv::Position>) -> u64 {
        let from = position.and_then(|position| usize::try_from(position.byte()).ok()).unwrap_or(self.byte);
        let rest = self.text.iter().skip(from);
        let blank = rest.take_while(|byte| matches!(**byte, b'\r' | b'\n')).count();
        let passed = self.text.iter().take(from + blank).skip(self.byte);
        self.line += passed.filter(|byte| **byte == b'\n').count() as u64;
        self.byte = self.byte.max(from + blank);
        self.line
    }
}

fn read_row(columns: &csv::StringRecord, record: &csv::StringRecord, line: u64) -> Result<Row, String> {
    let field = |name: &str| {
        let at = columns.iter().position(|column| column == name)?;
        record.get(at).filter(|field| !field.is_empty())
    };
    let name = field("name").ok_or("no name")?;
    if !is_plain(name) || name.len() > MAX_GROUP_NAME_BYTES || name.parse::<DeviceId>().is_ok() {
        return Err(format!(
            "{name:?} makes no directory: at most {MAX_GROUP_NAME_BYTES} of A-Z a-z 0-9 . _ -, and no UUID"
        ));
    }
    let id = match field("id") {
        Some(id) => Some(id.parse::<DeviceId>().map_err(|_| format!("{id:?} is no UUID"))?),
        None => None,
    };
    let labels = field("labels").map(str::to_owned);
    if let Some(Err(why)) = labels.as_deref().map(str::parse::<Labels>) {
        return Err(why.to_string());
    }
    Ok(Row { line, name: name.to_owned(), id, labels })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(text: &str) -> String {
        let mut wrong = Wrong::default();
        parse(text.as_bytes(), &mut wrong);
        wrong.check("list").unwrap_err().to_string()
    }

    #[test]
    fn what_is_wrong_is_told_by_its_line() {
        let id = "0b9f3c7e-6a52-4d0e-9c39-2f6d0b1a7c11";
        for (text, line, what) in [
            ("pump-1\n", 1, "no column \"pump-1\""),
            ("id,labels\n", 1, "no column name"),
            ("name,name\n", 1, "twice"),
            ("name\na\n\n../x\n", 4, "makes no directory"),
            ("name\na\nb\na\n", 4, "line 2 too"),
            ("name,id\na,7\n", 2, "no UUID"),
            (&format!("name,id\na,{id}\nb,{id}\n"), 3, "line 2 too"),
            (&format!("name\n{id}\n"), 2, "no UUID"),
            ("name,labels\na,site\n", 2, "site"),
            ("name,labels\na,x=1,y=2\n", 2, "labels go in quotes"),
            ("name,id\n,\n", 2, "no name"),
        ] {
            let refused = refused(text);
            assert!(
                refused.contains(&format!("line {line}: ")) && refused.contains(what),
                "{text:?}: {refused}"
            );
        }
        let all = refused("name,id\n.a,\nb,7\nc,\n");
        assert!(all.contains("line 2: ") && all.contains("line 3: ") && !all.contains("line 4: "), "{all}");
    }

    #[test]
    fn columns_stand_in_any_order_and_the_last_may_be_missing() {
        let mut wrong = Wrong::default();
        let rows = parse(b"labels,name,id\r\n\"a=1,b=2\",x\r\n,y,\r\n", &mut wrong);
        wrong.check("list").unwrap();
        assert_eq!(
            rows.iter().map(|row| (row.line, row.name.as_str())).collect::<Vec<_>>(),
            [(2, "x"), (3, "y")]
        );
        assert_eq!(rows[0].labels.as_deref(), Some("a=1,b=2"));
        assert!(rows[1].labels.is_none() && rows[1].id.is_none());
    }
}
