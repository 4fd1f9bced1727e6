//! What changes the CAs is cut off at each of its steps, and given again; and two at the same moment.
//!
//! A step is made to fail by what stands in its way: a directory where its file goes, or a file whose name leaves no room for that
//! of the draft that is put in its place.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use fleetkey_coordinator::Cas;
use fleetkey_coordinator::config::Config;
use fleetkey_identity::{FleetRoots, KeyId, certificates_from_pem, chain_from_pem, read_certificate};
use fleetkey_vault::files::Lock;
use serde_json::Value;
use support::*;

const PASSPHRASE: &str = "correct horse battery staple";
/// A name to which `.`, a dot and eight digits cannot be added; `.lock` can.
const LONG: usize = 247;

fn on(home: &Home, arguments: &[&str]) -> Command {
    let mut command = fleetkey();
    command.arg("--config").arg(home.file("fleetkey.toml")).args(arguments);
    command
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

fn id(der: &[u8]) -> String {
    KeyId::of_certificate(der).to_string()
}

fn issuing(home: &Home) -> String {
    id(&chain_from_pem(&text(&home.file("ca.pem"))).unwrap()[0])
}

/// With a directory where the file is to be put.
fn in_the_way<T>(path: &Path, then: impl FnOnce() -> T) -> T {
    fs::create_dir_all(path).unwrap();
    let done = then();
    fs::remove_dir(path).unwrap();
    done
}

/// With `name` of the settings under a name that is read, and cannot be written over.
fn not_written_over<T>(home: &Home, name: &str, then: impl FnOnce() -> T) -> T {
    let settings = home.file("fleetkey.toml");
    let before = text(&settings);
    let long = format!("{}{name}", "x".repeat(LONG - name.len()));
    fs::rename(home.file(name), home.file(&long)).unwrap();
    fs::write(&settings, before.replace(&format!("{name:?}"), &format!("{long:?}"))).unwrap();
    let done = then();
    fs::rename(home.file(&long), home.file(name)).unwrap();
    fs::write(&settings, before).unwrap();
    done
}

#[test]
fn a_roll_of_the_root_goes_on_from_whatever_step_it_was_cut_off_at() {
    let home = Home::with_fleet();
    let (first, old_root) = (issuing(&home), home.file("root-ca.pem"));
    let (stick, former) = (home.directory.path().join("stick"), home.file("former-cas"));
    let new_root = stick.join("root-2.pem");
    let roll = || {
        let mut roll = on(&home, &["ca", "roll", "--json", "--root", "--root-key"]);
        roll.arg(&old_root).arg("--new-root-key").arg(&new_root);
        run(&mut roll)
    };
    let cut_off = || failure(&roll());
    in_the_way(&former.join("rolling"), cut_off);
    // Nobody has plugged the stick in.
    cut_off();
    assert!(former.join("rolling").exists());
    fs::create_dir(&stick).unwrap();
    in_the_way(&former.join("root-links.pem"), cut_off);
    let made = text(&new_root);
    not_written_over(&home, "fleet-roots.pem", cut_off);
    in_the_way(&former.join(format!("{first}.pem")), cut_off);
    not_written_over(&home, "ca.pem", cut_off);
    assert_eq!(issuing(&home), first, "the old one issues until the last step");
    let begun = text(&former.join("rolling"));

    let said: Value = serde_json::from_str(&ok(&roll())).unwrap();
    assert_eq!((&said["before"], &said["ca"]), (&first.as_str().into(), &issuing(&home).into()));
    assert_eq!(text(&new_root), made, "the root is the one that was made first");
    let pinned = certificates_from_pem(&text(&home.file("fleet-roots.pem"))).unwrap();
    assert_eq!(pinned[1..], certificates_from_pem(&made).unwrap());
    assert_eq!(certificates_from_pem(&text(&former.join("root-links.pem"))).unwrap().len(), 1);
    let config = Config::load(&home.file("fleetkey.toml"), vec![]).unwrap();
    let cas = Cas::read(&config.identity).unwrap().unwrap();
    assert_eq!(cas.former.iter().map(|ca| ca.id().to_string()).collect::<Vec<_>>(), [first]);
    for (root, learnt) in [(&pinned[0], 1), (&pinned[1], 0)] {
        let alone = FleetRoots::new(std::slice::from_ref(root)).unwrap();
        assert!(cas.issuing.certificates().any(|der| alone.certifies(der)));
        assert_eq!(alone.learn(&cas.certificates(&FleetRoots::new(&pinned).unwrap())), learnt);
    }

    // Cut off when all was done but to say so.
    let after = text(&home.file("ca.pem"));
    fs::write(former.join("rolling"), begun).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&ok(&roll())).unwrap(), said);
    assert_eq!(text(&home.file("ca.pem")), after);
    assert!(!former.join("rolling").exists());
    let again = failure(&roll());
    assert!(again.contains("being replaced already"), "{again}");
}

#[test]
fn a_root_that_was_there_before_is_never_taken_for_a_new_one() {
    let home = Home::with_fleet();
    let (old_root, other) = (home.file("root-ca.pem"), home.file("other.pem"));
    let roots = text(&home.file("fleet-roots.pem"));
    // Another root of the same fleet, such as one whose key was stolen.
    let now = i64::try_from(fleetkey_coordinator::unix_seconds()).unwrap();
    let fleet = FleetRoots::from_pem(&roots).unwrap().fleet();
    let always = fleetkey_identity::Validity::without_end(now);
    let stolen = fleetkey_identity::FleetCa::create(fleet, &mut rand_core::OsRng, always).unwrap();
    fleetkey_coordinator::write_private(&other, stolen.to_pem().unwrap().as_bytes(), false).unwrap();
    let roll = |new_root: &Path| {
        let mut roll = on(&home, &["ca", "roll", "--root", "--root-key"]);
        failure(&run(roll.arg(&old_root).arg("--new-root-key").arg(new_root)))
    };
    // Also not when a roll has begun.
    roll(&home.file("nowhere").join("root-2.pem"));
    for there in [&other, &old_root] {
        let refused = roll(there);
        assert!(refused.contains("exists already"), "{refused}");
    }
    assert_eq!(text(&home.file("fleet-roots.pem")), roots);
}

#[test]
fn a_roll_and_a_change_of_passphrase_go_on_where_they_were_cut_off() {
    let home = Home::with_fleet();
    let (first, root, former) = (issuing(&home), home.file("root-ca.pem"), home.file("former-cas"));
    let roll = ["ca", "roll", "--root-key", root.to_str().unwrap()];
    not_written_over(&home, "ca.pem", || failure(&run(&mut on(&home, &roll))));
    assert_eq!(issuing(&home), first);
    ok(&run(&mut on(&home, &roll)));
    let keys = files_below(&former);
    assert_eq!(keys, [former.join(format!("{first}.pem"))]);

    let (one, two) = (home.file("one"), home.file("two"));
    fs::write(&one, "the first passphrase of all\n").unwrap();
    fs::write(&two, "and the one that follows it\n").unwrap();
    for passphrase in [&one, &two] {
        let before = text(&home.file("ca.pem"));
        let protect = || {
            let mut protect =
                on(&home, &["ca", "protect", "--passphrase-file", passphrase.to_str().unwrap()]);
            if passphrase == &two {
                protect.env("FLEETKEY_CA_PASSPHRASE", "the first passphrase of all");
            }
            run(&mut protect)
        };
        not_written_over(&home, "ca.pem", || failure(&protect()));
        assert_eq!(text(&home.file("ca.pem")), before);
        ok(&protect());
        let mut show = on(&home, &["ca", "show"]);
        show.env("FLEETKEY_CA_PASSPHRASE", text(passphrase).trim_end());
        assert!(ok(&run(&mut show)).contains("encrypted under a passphrase"));
    }
}

#[test]
fn while_one_changes_the_cas_nobody_else_does() {
    let home = Home::with_fleet();
    let serving = home.serve();
    let root = home.file("root-ca.pem");
    let roll = ["ca", "roll", "--root-key", root.to_str().unwrap()];
    let first = issuing(&home);
    serving.ok(&roll);
    let held = Lock::beside(&home.file("ca.pem")).unwrap();
    let protect = ["ca", "protect", "--passphrase-file", "/nowhere"];
    let retire = ["ca", "retire", &first, "--force"];
    for command in [&roll[..], &protect, &retire, &["ca", "renew", "coordinator"]] {
        let refused = serving.failure(command);
        assert!(refused.contains("another command is at work"), "{refused}");
    }
    drop(held);
    serving.ok(&retire);
}

#[test]
fn a_retirement_goes_on_from_whatever_step_it_was_cut_off_at() {
    let home = Home::with_fleet();
    let serving = home.serve();
    let (first, old_root) = (issuing(&home), home.file("root-ca.pem"));
    let former = home.file("former-cas");
    let (kept, retired) = (former.join(format!("{first}.pem")), former.join(format!("{first}.retired")));
    let new_root = home.directory.path().join("root-2.pem");
    let mut roll = serving.command(&["ca", "roll", "--root", "--root-key"]);
    ok(&run(roll.arg(&old_root).arg("--new-root-key").arg(&new_root)));
    // At once: the service has not looked at the files yet.
    let retire = |ca: &str| serving.ok(&["ca", "retire", ca, "--force"]);
    let key = text(&kept);
    in_the_way(&retired, || serving.failure(&["ca", "retire", &first, "--force"]));
    retire(&first);
    let last = text(&retired);
    for was_cut_off in [true, false] {
        if was_cut_off {
            fleetkey_coordinator::write_private(&kept, key.as_bytes(), false).unwrap();
        }
        assert!(retire(&first).contains("is retired"));
        assert!(!kept.exists(), "its key is deleted");
        assert_eq!(text(&retired), last, "nothing follows a last list");
    }

    // A certificate that was renewed a moment before stays.
    serving.ok(&["ca", "renew", "coordinator"]);
    let own = || read_certificate(&chain_from_pem(&text(&home.file("coordinator.crt"))).unwrap()[0]).unwrap();
    let renewed = own().key_id;
    let files = ["coordinator.crt", "ca.pem", "fleet-roots.pem"].map(|name| home.file(name));
    let before = files.clone().map(|file| text(&file));
    let root = id(&chain_from_pem(&text(&old_root)).unwrap()[0]);
    retire(&root);
    assert_eq!(own().key_id, renewed);
    let after = files.clone().map(|file| text(&file));
    assert_eq!(certificates_from_pem(&after[2]).unwrap(), chain_from_pem(&text(&new_root)).unwrap());
    for done in 0..=files.len() {
        for ((file, before), after) in files.iter().zip(&before).zip(&after).skip(done) {
            assert_ne!(before, after, "{}", file.display());
            fs::write(file, before).unwrap();
        }
        assert!(retire(&root).contains("is retired"));
        assert_eq!(files.clone().map(|file| text(&file)), after, "cut off after {done} files");
    }
    let refused = serving.failure(&["ca", "retire", "0011223344556677"]);
    assert!(refused.contains("there is no CA"), "{refused}");
}

#[test]
fn cas_that_cannot_be_read_are_read_when_they_can_be_and_it_is_said_once() {
    let home = Home::with_fleet();
    let settings = home.file("fleetkey.toml");
    let with = text(&settings).replace("# ca_passphrase = ", "ca_passphrase = ");
    fs::write(&settings, with).unwrap();
    let passphrase = home.file("ca.passphrase");
    fleetkey_coordinator::write_private(&passphrase, PASSPHRASE.as_bytes(), false).unwrap();
    ok(&run(&mut on(&home, &["ca", "protect", "--passphrase-file", passphrase.to_str().unwrap()])));
    let mut serving = home.serve_with(&[("FLEETKEY__LOG__FILTER", "fleetkey_coordinator=debug")]);
    let aside = home.file("aside");
    fs::rename(&passphrase, &aside).unwrap();
    let root = home.file("root-ca.pem");
    let mut roll = on(&home, &["ca", "roll", "--root-key", root.to_str().unwrap()]);
    ok(&run(roll.env("FLEETKEY_CA_PASSPHRASE", PASSPHRASE)));

    let mut log = BufReader::new(serving.child.stderr.take().unwrap());
    let (mut line, mut said) = (String::new(), String::new());
    while !line.contains("still cannot be read") {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "{said}");
        said.push_str(&line);
    }
    fs::rename(&aside, &passphrase).unwrap();
    let reader = std::thread::spawn(move || {
        let mut rest = String::new();
        log.read_to_string(&mut rest).map(|_| rest).unwrap()
    });
    let new: PathBuf = home.file("ca.pem");
    let after = id(&chain_from_pem(&text(&new)).unwrap()[0]);
    until("the service takes the new CA", || {
        let mut show = serving.command(&["ca", "show", "--json"]);
        let shown: Value =
            serde_json::from_str(&ok(&run(show.env("FLEETKEY_CA_PASSPHRASE", PASSPHRASE)))).unwrap();
        shown["hanging"]["issuing"]["id"] == after.as_str()
    });
    serving.kill();
    said.push_str(&reader.join().unwrap());
    assert_eq!(said.matches("and cannot be read").count(), 1, "{said}");
}
