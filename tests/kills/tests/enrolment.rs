//! Every way in, by real processes: claims, an operator's word, a manufacturer's certificate, and tools that are not ours;
//! and every way out again.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Result, ensure};
use fleetkey_kills::fleet::COMMAND_WITHIN;
use fleetkey_kills::process::{self, Process};
use fleetkey_kills::{Device, Dice, Door, faketime, wait};

const WITHIN: Duration = Duration::from_secs(60);

fn openssl(directory: &Path, arguments: &[&str]) -> Result<Output> {
    let mut openssl = Command::new("openssl");
    openssl.current_dir(directory).args(arguments);
    let output = process::run(openssl, COMMAND_WITHIN)?;
    ensure!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

/// Whether both tools are there; a test that does not run says so.
fn has_tools() -> bool {
    let is_there = |tool: &str| Command::new(tool).arg("--version").output().is_ok();
    let all = is_there("openssl") && is_there("curl");
    if !all {
        eprintln!("NOT RUN: openssl or curl is not installed");
    }
    all
}

/// Waits until the device holds a key of the group.
fn holds_key(device: &mut Device, group: &str) -> Result<()> {
    device.answers()?;
    wait::until("the device holds the group's key", WITHIN, || {
        Ok(match device.held(group)? {
            Some(held) if !held.held.is_empty() => None,
            Some(_) | None => Some("no key yet".to_owned()),
        })
    })
}

#[test]
fn a_claim_lets_a_device_in_its_labels_place_it_and_a_revocation_ends_it() -> Result<()> {
    let door = Door::open(101, &[])?;
    door.ask(&["group", "create", "hamburg", "--select", "site=hamburg"])?;
    let claim = door.claim(&["--labels", "site=hamburg,type=meter"])?;
    let enroll = |name: &str| {
        let mut command = door.enroll(name);
        command.env("FLEETKEY_CLAIM", &claim);
        process::run(command, COMMAND_WITHIN)
    };
    let mut device = door.enrolled("meter-1", &enroll("meter-1")?)?;
    let shown = door.ask(&["device", "show", "meter-1"])?;
    ensure!(shown["labels"] == "site=hamburg,type=meter", "{shown}");
    device.start()?;
    holds_key(&mut device, "hamburg")?;

    // The claim was for one device.
    let refused = enroll("meter-2")?;
    ensure!(!refused.status.success(), "a used claim let a second device in");
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("used up"), "{refused:?}");

    ensure!(!door.is_listed(&device)?, "on the list before it is revoked");
    door.ask(&["revoke", "meter-1", "--reason", "stolen"])?;
    ensure!(door.is_listed(&device)?, "revoked, and not on the list");
    wait::until("the broker turns it away", WITHIN, || {
        Ok((device.status()?["connected"] == true).then(|| "still connected".to_owned()))
    })?;
    // Its key comes back by no way.
    std::fs::remove_file(device.directory().join("agent.toml"))?;
    let fresh = door.claim(&[])?;
    let mut again = door.enroll("meter-1");
    again.env("FLEETKEY_CLAIM", fresh);
    let again = process::run(again, COMMAND_WITHIN)?;
    ensure!(String::from_utf8_lossy(&again.stderr).contains("revoked, for ever"), "{again:?}");
    Ok(())
}

#[test]
fn a_device_that_waits_comes_in_when_an_operator_approves() -> Result<()> {
    let door = Door::open(102, &[])?;
    let claim = door.claim(&["--approve"])?;
    let mut waiting = Process::new(door.path("enroll.log"));
    let mut command = door.enroll("pump-1");
    command.env("FLEETKEY_CLAIM", &claim);
    waiting.start(command)?;
    wait::until("the device waits", WITHIN, || {
        let requests = door.ask(&["device", "requests"])?;
        Ok(requests["requests"].as_array().is_none_or(Vec::is_empty).then(|| "nobody waits".to_owned()))
    })?;
    ensure!(door.ask(&["device", "list"])?["devices"].as_array().is_some_and(Vec::is_empty), "in already");
    door.ask(&["device", "approve", "pump-1"])?;
    wait::until("the device is in", WITHIN, || {
        Ok((!door.path("pump-1").join("agent.toml").exists()).then(|| "no settings yet".to_owned()))
    })?;
    ensure!(door.ask(&["device", "show", "pump-1"])?["standing"] == "enrolled", "not enrolled");
    Ok(())
}

#[test]
fn openssl_and_curl_alone_get_a_device_in() -> Result<()> {
    if !has_tools() {
        return Ok(());
    }
    let door = Door::open(103, &[])?;
    let claim = door.claim(&[])?;
    let place = door.path("by-hand");
    std::fs::create_dir(&place)?;
    openssl(&place, &["genpkey", "-algorithm", "ed25519", "-out", "device.key"])?;
    openssl(&place, &["req", "-new", "-key", "device.key", "-subj", "/CN=pump-9", "-out", "request.pem"])?;
    let request = ["--data-binary", "@request.pem", "-H", "Content-Type: application/pkcs10"];
    let take = |output: &Output, file: &str| -> Result<()> {
        ensure!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stdout));
        std::fs::write(place.join("answer.b64"), &output.stdout)?;
        openssl(&place, &["base64", "-d", "-in", "answer.b64", "-out", "answer.p7"])?;
        openssl(&place, &["pkcs7", "-inform", "DER", "-in", "answer.p7", "-print_certs", "-out", file])?;
        Ok(())
    };
    take(&door.curl(&place, &[&door.url("cacerts")])?, "ca.pem")?;
    let user = ["--user", &claim, &door.url("simpleenroll")];
    take(&door.curl(&place, &[&request[..], &user[..]].concat())?, "device.crt")?;
    openssl(&place, &["verify", "-CAfile", "ca.pem", "device.crt"])?;
    let shown = door.ask(&["device", "show", "pump-9"])?;
    ensure!(shown["standing"] == "enrolled", "{shown}");

    // With the certificate it gets the next one; without, or with another key, it does not.
    let own = ["--cert", "device.crt", "--key", "device.key", &door.url("simplereenroll")];
    take(&door.curl(&place, &[&request[..], &own[..]].concat())?, "device.crt")?;
    let nothing = door.curl(&place, &[&request[..], &[door.url("simplereenroll").as_str()]].concat())?;
    ensure!(!nothing.status.success(), "renewed without a certificate");
    openssl(&place, &["genpkey", "-algorithm", "ed25519", "-out", "other.key"])?;
    openssl(&place, &["req", "-new", "-key", "other.key", "-subj", "/CN=x", "-out", "other.pem"])?;
    let other = door.curl(&place, &[&["--data-binary", "@other.pem"][..], &own[..]].concat())?;
    ensure!(String::from_utf8_lossy(&other.stdout).contains("keeps its key"), "{other:?}");

    door.ask(&["revoke", "pump-9", "--reason", "lost"])?;
    let revoked = door.curl(&place, &[&request[..], &own[..]].concat())?;
    ensure!(String::from_utf8_lossy(&revoked.stdout).contains("revoked, for ever"), "{revoked:?}");
    take_list(&door, &place)?;
    let mut verify = Command::new("openssl");
    verify.current_dir(&place);
    verify.args(["verify", "-crl_check", "-CAfile", "ca.pem", "-CRLfile", "crl.pem", "device.crt"]);
    let verdict = process::run(verify, COMMAND_WITHIN)?;
    let said = String::from_utf8_lossy(&verdict.stderr).into_owned();
    ensure!(!verdict.status.success() && said.contains("revoked"), "openssl says: {said}");
    Ok(())
}

fn take_list(door: &Door, place: &Path) -> Result<()> {
    let list = door.curl(place, &[&door.url("crl")])?;
    ensure!(list.status.success(), "{list:?}");
    std::fs::write(place.join("crl.der"), list.stdout)?;
    openssl(place, &["crl", "-inform", "DER", "-in", "crl.der", "-out", "crl.pem"]).map(drop)
}

#[test]
fn a_manufacturers_certificate_lets_its_device_in_and_a_look_alike_does_not() -> Result<()> {
    if !has_tools() {
        return Ok(());
    }
    let factory = tempfile::Builder::new().prefix("fk-factory-").tempdir()?;
    let place = factory.path();
    // A factory that knows nothing of us: P-256, as IEEE 802.1AR has it; and somebody who copies its names.
    std::fs::write(place.join("leaf.ext"), "basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\n")?;
    for maker in ["acme", "copycat"] {
        let (key, crt) = (format!("{maker}.key"), format!("{maker}.crt"));
        let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let ca = ["req", "-x509", "-subj", "/CN=ACME Devices", "-days", "30", "-keyout", &key, "-out", &crt];
        openssl(place, &[&ca[..], &curve[..]].concat())?;
        let (device_key, csr) = (format!("{maker}-device.key"), format!("{maker}-device.csr"));
        let device =
            ["req", "-new", "-subj", "/CN=valve/serialNumber=4711", "-keyout", &device_key, "-out", &csr];
        openssl(place, &[&device[..], &curve[..]].concat())?;
        let issued = format!("{maker}-device.crt");
        let sign =
            ["x509", "-req", "-in", &csr, "-CA", &crt, "-CAkey", &key, "-CAcreateserial", "-days", "30"];
        openssl(place, &[&sign[..], &["-extfile", "leaf.ext", "-out", &issued]].concat())?;
    }
    openssl(place, &["genpkey", "-algorithm", "ed25519", "-out", "device.key"])?;
    openssl(place, &["req", "-new", "-key", "device.key", "-subj", "/CN=anything", "-out", "request.pem"])?;

    let mut door = Door::open(104, &[])?;
    let config = door.fleet.home().join("fleetkey.toml");
    let roots = place.join("acme.crt");
    let section =
        format!("\n[[manufacturers]]\nname = \"acme\"\nroots = {roots:?}\nlabels = \"maker=acme\"\n");
    let settings = std::fs::read_to_string(&config)?;
    std::fs::write(&config, settings + &section)?;
    door.fleet.coordinator.kill();
    door.fleet.start_coordinator()?;
    door.fleet.is_up()?;

    let ask = |maker: &str| {
        let (crt, key) = (format!("{maker}-device.crt"), format!("{maker}-device.key"));
        let url = door.url("simpleenroll");
        door.curl(place, &["--data-binary", "@request.pem", "--cert", &crt, "--key", &key, &url])
    };
    let copied = ask("copycat")?;
    ensure!(!copied.status.success(), "a copy of the manufacturer's names was let in");
    let genuine = ask("acme")?;
    ensure!(genuine.status.success(), "{genuine:?}");
    let shown = door.ask(&["device", "show", "acme-4711"])?;
    ensure!(shown["labels"] == "maker=acme" && shown["origin"] == "manufacturer acme", "{shown}");
    // The same identity with another key is somebody else.
    openssl(place, &["genpkey", "-algorithm", "ed25519", "-out", "device.key"])?;
    openssl(place, &["req", "-new", "-key", "device.key", "-subj", "/CN=anything", "-out", "request.pem"])?;
    let cloned = ask("acme")?;
    ensure!(String::from_utf8_lossy(&cloned.stdout).contains("another key"), "{cloned:?}");
    Ok(())
}

#[test]
fn a_device_that_slept_renews_when_it_wakes_and_pins_the_new_root() -> Result<()> {
    let Some(six_days_later) = faketime::clock("+6d") else {
        eprintln!("NOT RUN: a clock that is ahead needs libfaketime (apt-get install faketime)");
        return Ok(());
    };
    let door = Door::open(106, &[("FLEETKEY__ENROLMENT__DEVICE_DAYS", "7")])?;
    door.ask(&["group", "create", "all", "--select", "site=here"])?;
    let mut enroll = door.enroll("pump-1");
    enroll.env("FLEETKEY_CLAIM", door.claim(&["--labels", "site=here"])?);
    let mut device = door.enrolled("pump-1", &process::run(enroll, COMMAND_WITHIN)?)?;
    device.start()?;
    holds_key(&mut device, "all")?;
    device.process.kill();

    let (old, new) = (door.fleet.home().join("root-ca.pem"), door.path("root-2.pem"));
    let (old, new) = (old.to_string_lossy(), new.to_string_lossy());
    let rolled = door.ask(&["ca", "roll", "--root", "--root-key", &old, "--new-root-key", &new])?;
    wait::until("the service takes the new CA", WITHIN, || {
        let shown = door.ask(&["ca", "show"])?;
        Ok((shown["hanging"]["issuing"]["id"] != rolled["ca"]).then(|| shown.to_string()))
    })?;
    ensure!(
        door.ask(&["ca", "show"])?["hanging"]["former"][0]["devices"] == 1,
        "nothing hangs on the old CA"
    );
    device.settings = six_days_later;
    device.start()?;
    let pinned = device.directory().join("fleet-roots.pem");
    wait::until("the device has renewed", WITHIN, || {
        let shown = door.ask(&["ca", "show"])?;
        Ok((shown["hanging"]["former"][0]["devices"] != 0).then(|| shown.to_string()))
    })?;
    wait::until("the device has stored what it was given", WITHIN, || {
        let chain = std::fs::read_to_string(device.directory().join("device.crt"))?;
        let chain = fleetkey_identity::chain_from_pem(&chain)?;
        let roots = fleetkey_identity::FleetRoots::from_pem(&std::fs::read_to_string(&pinned)?)?;
        let new_root = fleetkey_identity::FleetCa::from_pem(&std::fs::read_to_string(new.as_ref())?)?;
        let knows = roots.ders().iter().any(|root| root == new_root.certificate_der());
        Ok((!knows || chain.len() != 2).then(|| "not yet".to_owned()))
    })?;
    holds_key(&mut device, "all")?;
    // With what it has now it comes in again.
    device.process.kill();
    device.start()?;
    holds_key(&mut device, "all")?;
    Ok(())
}

#[test]
fn a_revocation_that_is_killed_half_way_is_nothing_or_all_of_it() -> Result<()> {
    const ROUNDS: u64 = 8;
    let mut door = Door::open(105, &[])?;
    door.ask(&["group", "create", "all", "--select", "site=here"])?;
    let claim = door.claim(&["--uses", "20", "--labels", "site=here"])?;
    let mut dice = Dice::new(105);
    let (mut nothing, mut everything) = (0, 0);
    for round in 0..ROUNDS {
        let name = format!("d-{round}");
        let mut enroll = door.enroll(&name);
        enroll.env("FLEETKEY_CLAIM", &claim);
        let device = door.enrolled(&name, &process::run(enroll, COMMAND_WITHIN)?)?;
        let mut revoke = Process::new(door.path("revoke.log"));
        let mut command = door.fleet.binaries().command("fleetkey");
        command.arg("--config").arg(door.fleet.home().join("fleetkey.toml"));
        command.args(["revoke", &name, "--reason", "half-way"]);
        revoke.start(command)?;
        // Anywhere from before the command has arrived to after it was answered.
        std::thread::sleep(dice.time(60));
        door.fleet.coordinator.kill();
        door.fleet.start_coordinator()?;
        door.fleet.is_up()?;
        let shown = door.ask(&["device", "show", &name])?;
        let is_revoked = shown["standing"] != "enrolled";
        let is_member = shown["groups"].as_array().is_some_and(|groups| !groups.is_empty());
        ensure!(is_revoked != is_member, "half of it: {shown}");
        wait::until("the list says the same as the registry", WITHIN, || {
            Ok((door.is_listed(&device)? != is_revoked).then(|| "the list says something else".to_owned()))
        })?;
        let audit = door.path("audit.jsonl");
        let mut export = door.fleet.binaries().command("fleetkey");
        export.arg("--config").arg(door.fleet.home().join("fleetkey.toml"));
        export.args(["audit", "export", "--force", "--out"]).arg(&audit);
        let exported = process::run(export, COMMAND_WITHIN)?;
        ensure!(exported.status.success(), "no audit log: {exported:?}");
        let audit = std::fs::read_to_string(&audit)?;
        let is_told = audit.lines().any(|line| line.contains("\"revoke\"") && line.contains(&device.id));
        ensure!(is_told == is_revoked, "the audit log says something else: {shown}");
        if is_revoked { everything += 1 } else { nothing += 1 }
    }
    eprintln!("{ROUNDS} kills: {everything} times all of it, {nothing} times nothing");
    Ok(())
}
