//! Backup, restore, doctor, status and adoption as operators use them: real processes, real files, a real port.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use fleetkey_coordinator::SqliteStore;
use fleetkey_coordinator_core::records::{AuditRecord, GroupRecord, KeyRecord, MetaRecord, Record};
use fleetkey_coordinator_core::{DeviceRecord, Row, Standing, Store, Superseded, Table, Write};
use fleetkey_vault::MasterKey;
use fleetkey_wire::{DeviceId, KeyEpoch};
use serde_json::Value;
use support::*;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

impl Home {
    fn beside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn rows(&self, table: Table) -> Vec<Row> {
        self.store().rows(table).unwrap()
    }

    /// `fleetkey restore` with the fleet's settings.
    fn restore(&self, arguments: &[&str]) -> Output {
        let mut command = fleetkey();
        command.arg("--config").arg(self.file("fleetkey.toml")).arg("restore").args(arguments);
        run(&mut command)
    }

    /// `fleetkey doctor` on the database, with nobody at the API's address.
    fn doctor(&self) -> (Option<i32>, Value) {
        let mut command = fleetkey();
        command.arg("--config").arg(self.file("fleetkey.toml")).args(["--api", "http://127.0.0.1:9"]);
        let output = run(command.args(["doctor", "--json"]));
        let findings = serde_json::from_str(&stdout(&output)).unwrap_or(Value::Null);
        (output.status.code(), findings)
    }

    fn store(&self) -> SqliteStore {
        let master = MasterKey::from_file(self.file("master.key")).unwrap();
        SqliteStore::open(&self.file("fleetkey.db"), &master).unwrap()
    }

    fn records<R: Record>(&self) -> Vec<R> {
        self.store().rows(R::TABLE).unwrap().iter().map(|row| R::read(row).unwrap()).collect()
    }

    fn databases(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.fleet())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("fleetkey.db"))
            .collect();
        names.sort();
        names
    }
}

fn provision(home: &Home, serving: &Serving, name: &str) -> DeviceId {
    let out = home.beside(name);
    let made = serving.json(&["device", "provision", name, "--out", text(&out)]);
    made["device"].as_str().unwrap().parse().unwrap()
}

#[test]
fn a_backup_of_a_running_coordinator_becomes_a_coordinator_again() {
    let home = Home::with_fleet();
    let serving = home.serve();
    let kept = provision(&home, &serving, "kept");
    let gone = provision(&home, &serving, "gone");
    serving.ok(&["group", "create", "pumps"]);
    serving.ok(&["group", "add", "pumps", "kept", "gone"]);
    let file = home.beside("monday");
    let taken = serving.json(&["backup", text(&file)]);
    assert_eq!((taken["devices"].as_u64(), taken["groups"].as_u64()), (Some(2), Some(1)), "{taken}");
    assert_eq!(taken["memberships"].as_u64(), Some(2), "{taken}");
    assert_eq!(mode(&file), 0o600);
    let shown = serving.ok(&["backup", text(&home.beside("again"))]);
    assert!(shown.contains("2 devices (0 revoked), 1 group with 2 memberships"), "{shown}");
    let refused = serving.failure(&["backup", text(&file)]);
    assert!(refused.contains("exists already"), "{refused}");
    serving.ok(&["backup", text(&file), "--force"]);

    let late = provision(&home, &serving, "late");
    serving.ok(&["revoke", "gone", "--reason", "stolen"]);
    let audit = home.beside("audit.jsonl");
    let exported = serving.ok(&["audit", "export", "--out", text(&audit)]);
    assert!(exported.contains("entries"), "{exported}");
    serving.kill();
    let former: KeyRecord = home.records().remove(0);
    for name in home.databases() {
        fs::remove_file(home.file(&name)).unwrap();
    }

    let refused = failure(&home.restore(&[text(&file)]));
    assert!(refused.contains("nothing shows which devices were revoked from 20"), "{refused}");
    assert!(refused.contains("--audit") && refused.contains("--old-database"), "{refused}");
    assert_eq!(home.databases(), Vec::<String>::new(), "nothing was written");
    let done =
        ok(&home.restore(&[text(&file), "--audit", text(&audit), "--accept-unknown-revocations", "--json"]));
    let done: Value = serde_json::from_str(&done).unwrap();
    assert_eq!(done["revoked"], serde_json::json!([gone]), "{done}");
    assert_eq!(done["unknown"][0]["device"], serde_json::json!(late), "{done}");
    assert_eq!(done["wanted"].as_u64(), Some(1), "{done}");
    assert_eq!(done["set_aside"], Value::Null);
    assert_eq!(home.databases(), ["fleetkey.db"]);
    assert_eq!(mode(&home.file("fleetkey.db")), 0o600);

    let serving = home.serve();
    let status = serving.ok(&["status"]);
    assert!(status.contains("restored     at ") && status.contains("0 of 1 member back"), "{status}");
    let devices = serving.json(&["device", "list"]);
    let standing = |name: &str| {
        let devices = devices["devices"].as_array().unwrap();
        devices.iter().find(|device| device["name"] == name).map(|device| device["standing"].to_string())
    };
    assert_eq!(standing("kept").as_deref(), Some("\"enrolled\""));
    assert!(standing("gone").unwrap().contains("stolen"));
    assert_eq!(standing("late"), None);

    let refused = serving.failure(&["device", "adopt", text(&home.beside("gone/device.crt"))]);
    assert!(refused.contains("is revoked, for ever"), "{refused}");
    let refused = serving.failure(&["device", "adopt", text(&home.file("broker/broker.crt"))]);
    assert!(refused.contains("not of a device"), "{refused}");
    let refused = serving.failure(&["device", "adopt", text(&home.beside("kept/device.crt"))]);
    assert!(refused.contains("enrolled already"), "{refused}");
    let adopted = serving.json(&["device", "adopt", text(&home.beside("late/device.crt"))]);
    assert_eq!(
        (&adopted["devices"][0]["name"], &adopted["devices"][0]["id"]),
        (&"late".into(), &serde_json::json!(late))
    );
    serving.ok(&["group", "add", "pumps", "late"]);
    let log = serving.stop();
    assert!(log.contains("restored from a backup"), "{log}");

    let keys: Vec<KeyRecord> = home.records();
    assert!(keys[0].key_epoch > former.key_epoch && keys[0].secret != former.secret);
    assert!(keys[0].key_epoch.incarnation() > former.key_epoch.incarnation());
    let devices: Vec<DeviceRecord> = home.records();
    assert!(devices.iter().any(|device| device.id == kept && device.standing == Standing::Enrolled));
}

#[test]
fn a_restore_into_a_new_place_needs_the_fleets_files_alone() {
    let home = Home::with_fleet();
    let serving = home.serve();
    serving.ok(&["group", "create", "pumps"]);
    let file = home.beside("monday");
    serving.ok(&["backup", text(&file)]);
    serving.stop();
    let other = home.beside("other");
    fs::create_dir(&other).unwrap();
    for name in ["fleetkey.toml", "master.key", "fleet-roots.pem", "coordinator.crt", "coordinator.key"] {
        fs::copy(home.file(name), other.join(name)).unwrap();
    }
    let mut command = fleetkey();
    command.arg("--config").arg(other.join("fleetkey.toml")).arg("restore").arg(&file);
    let refused = failure(&run(&mut command));
    assert!(refused.contains("nothing shows"), "{refused}");
    command.args(["--old-database", text(&home.file("fleetkey.db")), "--accept-unknown-revocations"]);
    ok(&run(&mut command));
    assert!(other.join("fleetkey.db").exists());
}

#[test]
fn what_is_no_backup_of_this_fleet_is_refused_by_name_and_nothing_is_written() {
    let home = Home::with_fleet();
    let serving = home.serve();
    let file = home.beside("monday");
    serving.ok(&["backup", text(&file)]);
    serving.stop();
    let good = fs::read(&file).unwrap();
    let before = fs::read(home.file("fleetkey.db")).unwrap();
    let mut cut = good.clone();
    cut.truncate(good.len() - 1);
    let mut later = good.clone();
    later[16] = 9;
    for (bytes, what) in [
        (b"not a backup at all".to_vec(), "not a backup"),
        (cut, "damaged"),
        (later, "version 9"),
        (Vec::new(), "not a backup"),
    ] {
        fs::write(&file, bytes).unwrap();
        let refused = failure(&home.restore(&[text(&file), "--replace", "--accept-unknown-revocations"]));
        assert!(refused.contains(what), "{what}: {refused}");
    }
    fs::write(&file, &good).unwrap();
    let refused = failure(&home.restore(&[text(&file), "--accept-unknown-revocations"]));
    assert!(refused.contains("--replace") && refused.contains("--in-place"), "{refused}");

    let stranger = Home::with_fleet();
    let refused = failure(&stranger.restore(&[text(&file), "--replace", "--accept-unknown-revocations"]));
    assert!(refused.contains("is of fleet") || refused.contains("the backup is of fleet"), "{refused}");
    fs::write(home.file("master.key"), "0f".repeat(31) + "00").unwrap();
    let refused = failure(&home.restore(&[text(&file), "--replace", "--accept-unknown-revocations"]));
    assert!(refused.contains("another master key"), "{refused}");
    assert_eq!(fs::read(home.file("fleetkey.db")).unwrap(), before);
    assert_eq!(home.databases(), ["fleetkey.db"]);
    let missing = failure(&home.restore(&["absent", "--replace"]));
    assert!(missing.contains("absent"), "{missing}");
    assert_eq!(home.restore(&[]).status.code(), Some(2), "a backup or --in-place");
}

#[test]
fn a_database_that_is_replaced_is_kept_and_shows_what_it_knows() {
    let home = Home::with_fleet();
    let serving = home.serve();
    let gone = provision(&home, &serving, "gone");
    let file = home.beside("monday");
    serving.ok(&["backup", text(&file)]);
    let refused = failure(&home.restore(&[text(&file), "--replace", "--accept-unknown-revocations"]));
    assert!(refused.contains("in use"), "a coordinator runs on it: {refused}");
    serving.ok(&["revoke", "gone", "--reason", "stolen"]);
    serving.kill();
    let meta: MetaRecord = home.records().remove(0);

    let arguments = [text(&file), "--replace", "--accept-unknown-revocations", "--json"];
    let done: Value = serde_json::from_str(&ok(&home.restore(&arguments))).unwrap();
    assert_eq!(done["revoked"], serde_json::json!([gone]), "the old database tells: {done}");
    assert!(done["incarnation"].as_u64().unwrap() > u64::from(meta.incarnation));
    let aside = PathBuf::from(done["set_aside"].as_str().unwrap());
    assert!(aside.exists());
    let again: Value = serde_json::from_str(&ok(&home.restore(&arguments))).unwrap();
    assert!(again["incarnation"].as_u64() > done["incarnation"].as_u64(), "within one minute: {again}");
    assert_ne!(again["set_aside"], done["set_aside"]);
    assert_eq!(again["revoked"], done["revoked"]);
    let log = home.serve().stop();
    assert!(log.contains("restored from a backup"), "{log}");
}

#[test]
fn a_former_database_that_is_damaged_still_names_the_revoked() {
    let home = Home::with_fleet();
    let serving = home.serve();
    let gone = provision(&home, &serving, "gone");
    let file = home.beside("monday");
    serving.ok(&["backup", text(&file)]);
    serving.ok(&["revoke", "gone", "--reason", "stolen"]);
    serving.stop();
    let former = home.beside("former.db");
    fs::rename(home.file("fleetkey.db"), &former).unwrap();
    let connection = rusqlite::Connection::open(&former).unwrap();
    connection.execute_batch("UPDATE audit SET value = x'00'").unwrap();
    drop(connection);

    let refused = failure(&home.restore(&[text(&file), "--old-database", text(&former)]));
    assert!(refused.contains("nothing shows"), "what was lost may have told more: {refused}");
    let arguments = [text(&file), "--old-database", text(&former), "--accept-unknown-revocations", "--json"];
    let done: Value = serde_json::from_str(&ok(&home.restore(&arguments))).unwrap();
    assert_eq!(done["revoked"], serde_json::json!([gone]));
    assert_eq!(done["uncertain"].as_array().unwrap().len(), 1);
    assert_eq!(done["uncertain"][0]["from_unix_seconds"], done["backup_unix_seconds"]);
}

#[test]
fn a_superseded_coordinator_says_so_and_is_restored_in_place() {
    let home = Home::with_fleet();
    let serving = home.serve();
    let device = provision(&home, &serving, "pump-1");
    serving.ok(&["group", "create", "pumps"]);
    serving.stop();
    let group: GroupRecord = home.records().remove(0);
    let meta: MetaRecord = home.records().remove(0);
    let key_epoch = KeyEpoch::new(meta.incarnation + 1_000_000, 5);
    let superseded = Some(Superseded { unix_seconds: 1_800_000_000, device, group: group.id, key_epoch });
    home.store().commit(&[MetaRecord { superseded, ..meta }.put()]).unwrap();

    let serving = home.serve();
    let status = serving.ok(&["status"]);
    assert!(status.contains("SUPERSEDED") && status.contains("fleetkey restore --in-place"), "{status}");
    let refused = serving.failure(&["group", "rekey", "pumps"]);
    assert!(refused.contains("end the other copy") && refused.contains("--in-place"), "{refused}");
    let doctor = run(&mut serving.command(&["doctor"]));
    assert_eq!(doctor.status.code(), Some(1));
    assert!(stdout(&doctor).contains("ATTENTION  superseded: coordinator"), "{}", stdout(&doctor));
    let log = serving.stop();
    assert!(log.contains("superseded") && log.contains("--in-place"), "{log}");

    let refused = failure(&home.restore(&["--in-place"]));
    assert!(refused.contains("nothing shows"), "the other copy may have revoked: {refused}");
    let done = ok(&home.restore(&["--in-place", "--accept-unknown-revocations", "--json"]));
    let done: Value = serde_json::from_str(&done).unwrap();
    assert!(done["incarnation"].as_u64().unwrap() > u64::from(key_epoch.incarnation()), "{done}");
    let serving = home.serve();
    assert!(serving.ok(&["status"]).contains("coordinator  issuing"));
    serving.ok(&["group", "rekey", "pumps"]);
    serving.stop();
    let keys: Vec<KeyRecord> = home.records();
    assert!(keys[0].key_epoch > key_epoch);
}

#[test]
fn the_doctor_looks_at_a_running_and_at_a_stopped_coordinator() {
    let home = Home::with_fleet();
    let serving = home.serve();
    let device = provision(&home, &serving, "pump-1");
    serving.ok(&["group", "create", "pumps"]);
    serving.ok(&["group", "add", "pumps", "pump-1"]);
    let sound = run(&mut serving.command(&["doctor"]));
    assert_eq!((sound.status.code(), stdout(&sound).trim()), (Some(0), "sound: nothing was found"));
    assert_eq!(home.doctor().0, Some(2), "another process has the database");
    serving.stop();
    assert_eq!(home.doctor(), (Some(0), serde_json::json!({ "findings": [] })));

    let mut key: KeyRecord = home.records().remove(0);
    key.secret[0] ^= 1;
    let mut revoked: DeviceRecord = home.records().remove(0);
    revoked.standing = Standing::Revoked { unix_seconds: 1, reason: "planted".into() };
    home.store().commit(&[key.put(), revoked.put()]).unwrap();
    let (code, findings) = home.doctor();
    assert_eq!(code, Some(1));
    let names: Vec<&str> =
        findings["findings"].as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["wrong_commitment", "revoked_present"], "{findings}");
    assert!(findings["findings"][1]["subject"].as_str().unwrap().contains(&device.to_string()));
    fs::remove_file(home.file("fleetkey.db")).unwrap();
    assert_eq!(home.doctor().0, Some(2));
}

#[test]
fn the_status_says_who_is_behind_and_what_was_stored_last() {
    let home = Home::with_fleet();
    let serving = home.serve();
    provision(&home, &serving, "pump-1");
    serving.ok(&["group", "create", "pumps"]);
    serving.ok(&["group", "add", "pumps", "pump-1"]);
    let status = serving.json(&["status"]);
    assert_eq!(status["coordinator"]["behind"]["never_heard"].as_u64(), Some(1), "{status}");
    assert_eq!(status["store"]["last_step"]["command"], "add");
    assert!(status["store"]["last_step"]["transactions"].as_u64() >= Some(3));
    assert_eq!(status["store"]["outbox"].as_u64(), Some(0));
    let shown = serving.ok(&["status"]);
    assert!(shown.contains("behind       1 not heard since the start"), "{shown}");
    assert!(shown.contains("outbox       0 messages") && shown.contains("(add), "), "{shown}");
    let shown = serving.ok(&["group", "show", "pumps"]);
    assert!(shown.contains("behind     1 not heard since the start"), "{shown}");
    serving.stop();
}

#[test]
fn the_audit_log_is_exported_in_pages_from_any_time_on() {
    let home = Home::with_fleet();
    let serving = home.serve();
    for n in 0..3 {
        serving.ok(&["group", "create", &format!("pumps-{n}")]);
    }
    let lines = |arguments: &[&str]| -> Vec<Value> {
        let text = serving.ok(&[&["audit", "export"], arguments].concat());
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let all = lines(&[]);
    assert_eq!(all[0]["fleetkey_audit"].as_u64(), Some(2));
    assert_eq!(all[0]["since_unix_seconds"].as_u64(), Some(0));
    assert_eq!(all[1]["action"], "create_group");
    assert_eq!((all.len(), all[4]["entries"].as_u64()), (5, Some(3)));
    assert!(all[4]["until_unix_seconds"].as_u64() > Some(1_700_000_000));
    let none = lines(&["--since", "2100-01-01T00:00:00Z"]);
    assert_eq!((none.len(), none[1]["entries"].as_u64()), (2, Some(0)));
    let shown = serving.ok(&["audit"]);
    assert!(shown.contains("     1  20") && shown.contains("Z  root  create_group  "), "{shown}");
    assert_eq!(shown.lines().count(), 3);
    let told = serving.ok(&["audit", "--json"]);
    let told: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(told, all[1..4], "one line an entry, with the hashes");
    assert_eq!(told[1]["previous"], told[0]["hash"]);
    assert_eq!(told[0]["hash"].as_str().unwrap().len(), 64);
    let wrong = run(&mut serving.command(&["audit", "export", "--since", "yesterday"]));
    assert_eq!(wrong.status.code(), Some(2));
    serving.stop();
}

#[test]
fn the_published_list_tells_who_was_revoked_after_the_backup() {
    let home = Home::with_fleet();
    let serving = home.serve();
    let (kept, gone) = (provision(&home, &serving, "kept"), provision(&home, &serving, "gone"));
    let file = home.beside("backup");
    serving.ok(&["backup", text(&file)]);
    serving.ok(&["revoke", "gone", "--reason", "stolen"]);
    serving.kill();
    for name in home.databases() {
        fs::remove_file(home.file(&name)).unwrap();
    }
    // It tells of nobody who is not in the backup: what is uncertain stays so.
    let refused = failure(&home.restore(&[text(&file)]));
    assert!(refused.contains("nothing shows which devices were revoked"), "{refused}");
    let list = fs::read(home.file("fleet.crl")).unwrap();
    fs::write(home.file("fleet.crl"), "hello").unwrap();
    let refused = failure(&home.restore(&[text(&file), "--accept-unknown-revocations"]));
    assert!(refused.contains("fleet.crl"), "{refused}");
    fs::write(home.file("fleet.crl"), list).unwrap();
    let done = ok(&home.restore(&[text(&file), "--accept-unknown-revocations", "--json"]));
    let done: Value = serde_json::from_str(&done).unwrap();
    assert_eq!(done["revoked"], serde_json::json!([gone]));
    let serving = home.serve();
    let devices = serving.ok(&["device", "list"]);
    assert!(devices.contains("named by the published revocation list"), "{devices}");
    assert!(serving.ok(&["device", "show", &kept.to_string()]).contains("enrolled"));
}

/// An exported log in which the lines of its entries are other ones.
fn tampered(path: &Path, change: impl FnOnce(&mut Vec<String>)) {
    let text = fs::read_to_string(path).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    change(&mut lines);
    fs::write(path, lines.join("\n")).unwrap();
}

#[test]
fn what_was_done_to_an_exported_log_is_named_without_a_service() {
    let home = Home::with_fleet();
    let serving = home.serve();
    for n in 1..=5 {
        serving.ok(&["group", "create", &format!("pumps-{n}")]);
    }
    let verified = serving.json(&["audit", "verify"]);
    assert_eq!((verified["entries"].as_u64(), verified["first"].as_u64()), (Some(5), Some(1)));
    let noted = format!("5:{}", verified["head"]["hash"].as_str().unwrap());
    let shown = serving.ok(&["audit", "verify"]);
    assert!(shown.contains("5 entries, each following the one before") && shown.contains(&noted), "{shown}");
    let audit = home.beside("audit.jsonl");
    serving.ok(&["audit", "export", "--out", text(&audit)]);
    let since = home.beside("since.jsonl");
    serving.ok(&["audit", "export", "--since", "2020-01-01T00:00:00Z", "--out", text(&since)]);
    serving.ok(&["group", "create", "later"]);
    serving.ok(&["audit", "verify", "--expect", &noted]);
    let wrong = serving.failure(&["audit", "verify", "--expect", &format!("4:{}", "00".repeat(32))]);
    assert!(wrong.contains("entry 4 has the hash") && wrong.contains("written anew"), "{wrong}");
    serving.stop();

    // From here on nobody answers: the file alone tells.
    let verify = |path: &Path, further: &[&str]| {
        let mut command = fleetkey();
        command.args(["audit", "verify", text(path)]).args(further);
        run(&mut command)
    };
    ok(&verify(&audit, &["--expect", &noted]));
    ok(&verify(&since, &["--expect", &noted]));
    let good = fs::read(&audit).unwrap();
    type Change = fn(&mut Vec<String>);
    let changes: [(Change, &str); 7] = [
        (|lines| lines[3] = lines[3].replace("pumps-3", "pumps-9"), "entry 3 was changed"),
        (|lines| lines[3] = lines[3].replace("\"root\"", "\"ops1\""), "entry 3 was changed"),
        (|lines| drop(lines.remove(3)), "entry 3 is missing"),
        (|lines| lines.swap(3, 4), "entry 4 is out of order: it stands before entry 3"),
        (|lines| lines.insert(4, lines[3].clone()), "entry 3 is there twice"),
        (|lines| lines[4] = lines[5].clone(), "entry 4 is missing"),
        (|lines| drop(lines.remove(5)), "ends with entry 4, and says that it holds 5"),
    ];
    for (change, named) in changes {
        fs::write(&audit, &good).unwrap();
        tampered(&audit, change);
        let refused = failure(&verify(&audit, &[]));
        assert!(refused.contains(named), "{named}: {refused}");
    }
    fs::write(&audit, &good).unwrap();
    tampered(&audit, |lines| {
        lines.remove(5);
        lines[5] = lines[5].replace("\"entries\":5", "\"entries\":4");
    });
    ok(&verify(&audit, &[]));
    let cut = failure(&verify(&audit, &["--expect", &noted]));
    assert!(cut.contains("the log ends at 4:") && cut.contains("its end was cut off"), "{cut}");
}

#[test]
fn what_was_done_to_the_stored_log_is_found_by_doctor_and_verify() {
    let home = Home::with_fleet();
    let serving = home.serve();
    for n in 1..=5 {
        serving.ok(&["group", "create", &format!("pumps-{n}")]);
    }
    serving.stop();
    assert_eq!(home.doctor(), (Some(0), serde_json::json!({ "findings": [] })));
    let good = home.rows(Table::Audit);
    let delete = |at: usize| Write { table: Table::Audit, key: good[at].key.clone(), value: None };
    let mut forged = AuditRecord::read(&good[2]).unwrap();
    forged.who = "ops1".into();
    let anew = AuditRecord::following(AuditRecord::read(&good[1]).unwrap().head(), forged.deed());
    for (write, named) in [
        (delete(2), "entry 3 is missing"),
        (delete(4), "entry 5 is missing"),
        (forged.put(), "entry 3 was changed"),
        (anew.put(), "entry 3 was changed"),
    ] {
        home.store().commit(&[write]).unwrap();
        let (code, findings) = home.doctor();
        let finding = &findings["findings"][0];
        assert_eq!((code, finding["name"].as_str()), (Some(1), Some("audit_broken")), "{named}: {findings}");
        assert!(finding["detail"].as_str().unwrap().contains(named), "{findings}");
        // It goes on all the same, after the head that it remembers.
        let serving = home.serve();
        let refused = serving.failure(&["audit", "verify"]);
        assert!(refused.contains(named), "{refused}");
        serving.stop();
        let back: Vec<Write> = good
            .iter()
            .map(|row| Write { table: row.table, key: row.key.clone(), value: Some(row.value.clone()) })
            .collect();
        home.store().commit(&back).unwrap();
    }
    assert_eq!(home.doctor().0, Some(0), "or this test would prove nothing");
}
