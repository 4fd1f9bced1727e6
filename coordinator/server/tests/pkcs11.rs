//! A CA's key in a token: SoftHSM (Debian's softhsm2), by its own tools, and the `fleetkey` command on it. Says so plainly
//! where it could not run.
#![cfg(feature = "pkcs11")]
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot set itself up has failed")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use fleetkey_coordinator::pkcs11::{self, Pkcs11Config};
use fleetkey_identity::{FleetRoots, KeyId, chain_from_pem};
use support::*;
use tempfile::TempDir;

const PIN: &str = "4271-9083";
const MODULES: [&str; 4] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];

/// A token of its own, in a directory.
struct Token {
    directory: TempDir,
    module: &'static str,
}

impl Token {
    /// `None` where SoftHSM is not installed.
    fn new() -> Option<Self> {
        let module = MODULES.into_iter().find(|path| Path::new(path).exists());
        let util = Command::new("softhsm2-util").arg("--version").output();
        let (Some(module), Ok(_)) = (module, util) else {
            eprintln!("NOT RUN: SoftHSM is not installed (softhsm2)");
            return None;
        };
        let token = Self { directory: tempfile::tempdir().unwrap(), module };
        let tokens = token.directory.path().join("tokens");
        fs::create_dir(&tokens).unwrap();
        let settings = format!("directories.tokendir = {}\nobjectstore.backend = file\n", tokens.display());
        fs::write(token.settings(), settings).unwrap();
        fleetkey_coordinator::write_private(&token.pin(), PIN.as_bytes(), false).unwrap();
        make_token(&token.settings());
        Some(token)
    }

    fn settings(&self) -> PathBuf {
        self.directory.path().join("softhsm2.conf")
    }

    fn pin(&self) -> PathBuf {
        self.directory.path().join("pin")
    }

    fn with(&self, command: &mut Command) -> std::process::Output {
        run(command.env("SOFTHSM2_CONF", self.settings()))
    }

    fn init(&self, home: &Home) {
        let mut init = fleetkey();
        init.arg("init").arg(home.fleet()).args(["--broker", "mqtt://127.0.0.1:9"]);
        init.args(["--pkcs11-module", self.module, "--pkcs11-token", "fleet", "--pkcs11-key", "issuing-1"]);
        init.arg("--pkcs11-pin-file").arg(self.pin());
        ok(&self.with(&mut init));
    }
}

fn make_token(settings: &Path) {
    softhsm(settings, &["--init-token", "--free", "--label", "fleet", "--so-pin", "12345678", "--pin", PIN]);
}

fn softhsm(settings: &Path, arguments: &[&str]) {
    let made = Command::new("softhsm2-util").args(arguments).env("SOFTHSM2_CONF", settings).output().unwrap();
    assert!(made.status.success(), "{}", stderr(&made));
}

fn chain(path: &Path) -> Vec<Vec<u8>> {
    chain_from_pem(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_ca_in_a_token_issues_and_its_key_is_in_no_file() {
    let Some(token) = Token::new() else { return };
    let home = Home { directory: tempfile::tempdir().unwrap() };
    token.init(&home);
    let ca = fs::read_to_string(home.file("ca.pem")).unwrap();
    assert!(ca.contains("pkcs11:object=issuing-1") && !ca.contains("PRIVATE KEY"), "{ca}");
    for file in files_below(&home.fleet()) {
        let text = String::from_utf8_lossy(&fs::read(&file).unwrap()).into_owned();
        assert!(!text.contains(PIN), "{}", file.display());
    }

    // A coordinator that cannot open the token says why, and does not start.
    let mut without = home.serve_command();
    let refused = failure(&run(without.env("SOFTHSM2_CONF", "/nowhere")));
    assert!(refused.contains("ca.pem"), "{refused}");
    let mut wrong = home.serve_command();
    let refused = failure(&token.with(wrong.env("FLEETKEY_PKCS11_PIN", "0000-0000")));
    assert!(refused.contains("log in to the token") && !refused.contains("0000"), "{refused}");

    let serving = home.serve_with(&[("SOFTHSM2_CONF", token.settings().to_str().unwrap())]);
    let out = home.directory.path().join("pump-1");
    serving.ok(&["device", "provision", "pump-1", "--out", out.to_str().unwrap()]);
    let issued = chain(&out.join("device.crt"));
    let roots = FleetRoots::from_pem(&fs::read_to_string(home.file("fleet-roots.pem")).unwrap()).unwrap();
    roots.verify(&issued, None).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !home.file("fleet.crl").exists() {
        assert!(Instant::now() < deadline, "no list");
        std::thread::sleep(Duration::from_millis(50));
    }
    let verdict = Command::new("openssl")
        .args(["verify", "-crl_check", "-CAfile"])
        .arg(home.file("fleet-roots.pem"))
        .arg("-CRLfile")
        .arg(home.file("fleet.crl"))
        .arg("-untrusted")
        .arg(out.join("device.crt"))
        .arg(out.join("device.crt"))
        .output();
    match verdict {
        Ok(verdict) => assert!(verdict.status.success(), "{verdict:?}"),
        Err(_) => eprintln!("NOT RUN: openssl is not installed"),
    }
    let log = serving.stop();
    assert!(!log.contains(PIN), "{log}");
}

#[test]
fn a_roll_makes_the_next_key_in_the_token_and_takes_no_label_twice() {
    let Some(token) = Token::new() else { return };
    let home = Home { directory: tempfile::tempdir().unwrap() };
    token.init(&home);
    let root = home.file("root-ca.pem");
    let roll = |arguments: &[&str]| {
        let mut command = fleetkey();
        command.arg("--config").arg(home.file("fleetkey.toml")).args(["ca", "roll", "--root-key"]);
        command.arg(&root).args(arguments);
        command
    };
    let refused = failure(&token.with(&mut roll(&[])));
    assert!(refused.contains("--pkcs11"), "a key must not leave for a file by oversight: {refused}");
    let refused = failure(&token.with(&mut roll(&["--pkcs11", "issuing-1"])));
    assert!(refused.contains("labelled \"issuing-1\" already"), "{refused}");
    // Cut off when the key is there: it goes on with that one.
    let first = KeyId::of_certificate(&chain(&home.file("ca.pem"))[0]);
    let in_the_way = home.file("former-cas").join(format!("{first}.pem"));
    fs::create_dir_all(&in_the_way).unwrap();
    failure(&token.with(&mut roll(&["--pkcs11", "issuing-2"])));
    fs::remove_dir(&in_the_way).unwrap();
    let refused = failure(&token.with(&mut roll(&["--pkcs11", "issuing-1"])));
    assert!(refused.contains("labelled \"issuing-1\" already"), "{refused}");
    ok(&token.with(&mut roll(&["--pkcs11", "issuing-2"])));
    let ca = fs::read_to_string(home.file("ca.pem")).unwrap();
    assert!(ca.contains("pkcs11:object=issuing-2") && !ca.contains("PRIVATE KEY"), "{ca}");

    let serving = home.serve_with(&[("SOFTHSM2_CONF", token.settings().to_str().unwrap())]);
    let out = home.directory.path().join("pump-1");
    serving.ok(&["device", "provision", "pump-1", "--out", out.to_str().unwrap()]);
    let issuer = chain_from_pem(&ca).unwrap().remove(0);
    assert_eq!(KeyId::of_certificate(&chain(&out.join("device.crt"))[1]), KeyId::of_certificate(&issuer));
}

/// The directory of a token: what the test below is started with.
const DIRECTORY: &str = "FLEETKEY_TEST_TOKEN";

#[test]
fn another_key_of_the_same_label_does_not_sign_for_the_ca() {
    let Some(token) = Token::new() else { return };
    // A module reads from the environment where its tokens are.
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "a_token_that_was_replaced_is_told_from_the_one_before"]);
    child.env(DIRECTORY, token.directory.path()).env("SOFTHSM2_CONF", token.settings());
    let told = run(&mut child);
    assert!(stdout(&told).contains("1 passed"), "{}{}", stdout(&told), stderr(&told));
}

#[test]
fn a_token_that_was_replaced_is_told_from_the_one_before() {
    // In a process of its own, which the test above starts.
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    let path = MODULES.into_iter().find(|path| Path::new(path).exists()).unwrap();
    let config = Pkcs11Config {
        module: path.into(),
        token: "fleet".to_owned(),
        pin_file: Some(directory.join("pin")),
    };
    let key = pkcs11::generate(&config, "issuing-1").unwrap();
    key.sign(b"of the CA").unwrap();
    let module = Pkcs11::new(path).unwrap();
    module.clone().finalize().unwrap();
    let settings = directory.join("softhsm2.conf");
    softhsm(&settings, &["--delete-token", "--token", "fleet"]);
    make_token(&settings);
    let home = Home { directory: tempfile::tempdir().unwrap() };
    let token = Token { directory: tempfile::tempdir_in(&directory).unwrap(), module: path };
    fs::copy(&settings, token.settings()).unwrap();
    fs::copy(directory.join("pin"), token.pin()).unwrap();
    token.init(&home);
    module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
    let refused = key.sign(b"of nobody").unwrap_err().to_string();
    assert!(refused.contains("is another than the CA's"), "{refused}");
}
