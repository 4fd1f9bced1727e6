//! Crowds: devices that all enrol at once, and one that is revoked among many that are connected.
//!
//! Small as a part of the workspace's tests, so that they are known to work; `just crowds` has the figures that count.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fleetkey_agent::est::{Answer, Est};
use fleetkey_identity::tls::enrolment_client_config;
use fleetkey_identity::{FleetRoots, IdentityKey, Role, signing_request};
use fleetkey_kills::intruder::{ACCEPTED, Intruder};
use fleetkey_kills::{Door, setting};
use rand_core::OsRng;

/// Devices that ask at the same time.
const AT_ONCE: usize = 32;

/// A device with its first certificate.
struct Enrolled {
    id: String,
    name: String,
    key: IdentityKey,
    chain: Vec<Vec<u8>>,
}

fn read_roots(door: &Door) -> Result<FleetRoots> {
    Ok(FleetRoots::from_pem(&std::fs::read_to_string(door.roots())?)?)
}

/// Lets so many devices in, each with a key of its own and over a connection of its own.
fn enrol(door: &Door, count: usize) -> Result<Vec<Enrolled>> {
    let claim = door.claim(&["--uses", &count.to_string()])?;
    let roots = Arc::new(read_roots(door)?);
    let url = format!("https://{}", door.est);
    let next = AtomicUsize::new(0);
    let one = |number: usize, runtime: &tokio::runtime::Runtime| -> Result<Enrolled> {
        let (name, key) = (format!("crowd-{number}"), IdentityKey::generate(&mut OsRng));
        let est = Est::new(url.parse()?, enrolment_client_config(None, &roots)?);
        let request = signing_request(&key, &name);
        loop {
            match runtime.block_on(est.enrol(&request, Some(&claim)))? {
                Answer::Issued(chain) => {
                    let Role::Device(id) = roots.verify(&chain, None)?.role else {
                        anyhow::bail!("{name} has the certificate of something else")
                    };
                    return Ok(Enrolled { id: id.to_string(), name, key, chain });
                }
                Answer::AskAgain(wait) => thread::sleep(wait),
            }
        }
    };
    let work = || -> Result<Vec<Enrolled>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(done);
            }
            done.push(one(number, &runtime).with_context(|| format!("device {number}"))?);
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE.min(count)).map(|_| scope.spawn(work)).collect();
        let mut all = Vec::with_capacity(count);
        for worker in workers {
            all.extend(worker.join().expect("no worker panics")?);
        }
        Ok(all)
    })
}

/// Comes in as the device; as long as the broker has not heard of the policy yet, it says that it is not there for anybody.
fn come_in(device: &Enrolled, roots: &FleetRoots, port: u16) -> Result<Intruder> {
    const UNAVAILABLE: u8 = 3;
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let (client, code) = Intruder::connect_as(&device.chain, &device.key, roots, &device.id, port)?;
        match code {
            ACCEPTED => return Ok(client),
            UNAVAILABLE if Instant::now() < end => thread::sleep(Duration::from_millis(20)),
            other => anyhow::bail!("not let in: {other}"),
        }
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent).div_ceil(100).clamp(1, sorted.len()) - 1]
}

fn show(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let [half, most, worst] = [50, 99, 100].map(|percent| percentile(times, percent));
    eprintln!("{what}: {} times, median {half:.1?}, p99 {most:.1?}, slowest {worst:.1?}", times.len());
}

#[test]
fn a_crowd_enrols_while_the_operator_is_answered() -> Result<()> {
    let count = usize::try_from(setting("FLEETKEY_CROWD_DEVICES", 60))?;
    let door = Door::open(201, &[])?;
    let is_over = AtomicBool::new(false);
    let (devices, seconds, mut answers) = thread::scope(|scope| -> Result<_> {
        let operator = scope.spawn(|| -> Result<Vec<Duration>> {
            let mut answers = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                door.ask(&["status"])?;
                answers.push(begun.elapsed());
            }
            Ok(answers)
        });
        let begun = Instant::now();
        let devices = enrol(&door, count);
        let seconds = begun.elapsed().as_secs_f64();
        is_over.store(true, Ordering::Relaxed);
        Ok((devices?, seconds, operator.join().expect("the operator does not panic")?))
    })?;
    let rate = devices.len() as f64 / seconds;
    eprintln!("{count} devices enrolled over EST in {seconds:.2} s: {rate:.0} a second");
    show("`fleetkey status` meanwhile", &mut answers);

    let status = door.ask(&["status"])?;
    ensure!(status["coordinator"]["enrolled"] == count, "{status}");
    let mut ids: Vec<&str> = devices.iter().map(|device| device.id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    ensure!(ids.len() == count, "two devices have one identity");
    // One too many.
    let last = door.ask(&["claim", "list"])?;
    ensure!(last["claims"][0]["used"] == count, "{last}");
    Ok(())
}

/// From the start of the operator's command to the closed connection, with everybody else's left alone.
#[test]
fn a_revocation_ends_the_session_at_once_among_many() -> Result<()> {
    let sessions = usize::try_from(setting("FLEETKEY_CROWD_SESSIONS", 30))?;
    let revoked = usize::try_from(setting("FLEETKEY_CROWD_REVOKED", 10))?;
    ensure!(revoked < sessions, "somebody has to remain");
    rlimit::increase_nofile_limit(u64::MAX).context("open files")?;
    let door = Door::open(202, &[])?;
    let roots = read_roots(&door)?;
    let port = door.fleet.broker_port();
    let mut connected = Vec::new();
    for device in enrol(&door, sessions)? {
        let client = come_in(&device, &roots, port).with_context(|| device.name.clone())?;
        connected.push((device, client));
    }
    let mut times = Vec::new();
    for (device, client) in connected.iter_mut().take(revoked) {
        let begun = Instant::now();
        let closed = thread::scope(|scope| -> Result<Duration> {
            let command = scope.spawn(|| door.ask(&["revoke", &device.name, "--reason", "stolen"]));
            client.until_closed()?;
            let closed = begun.elapsed();
            command.join().expect("the command does not panic")?;
            Ok(closed)
        })?;
        times.push(closed);
    }
    show(&format!("from `fleetkey revoke` to the closed session, {sessions} connected"), &mut times);
    ensure!(percentile(&times, 99) < Duration::from_secs(1), "too late");
    for (device, client) in connected.iter_mut().skip(revoked) {
        let up = format!("fk/{}/dev/{}/down", roots.fleet(), device.id);
        let answer = client.subscribe(&up)?;
        ensure!(answer == fleetkey_kills::intruder::Verdict::Taken, "{} was cut off, too", device.name);
    }
    Ok(())
}
