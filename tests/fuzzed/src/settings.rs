//! The files that coordinator, agent and broker are configured with.

use std::path::Path;

use fleetkey_agent::settings::Settings as AgentSettings;
use fleetkey_broker::service::Settings as BrokerSettings;
use fleetkey_coordinator::config::Config;

use crate::steps::choose;

/// What cannot be used is said in one line, naming the file.
pub fn run(data: &[u8]) {
    let Some((choice, rest)) = choose(data, 3) else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let path = Path::new("/etc/fleetkey/settings.toml");
    let said = match choice {
        0 => Config::parse(path, text).err().map(|error| error.to_string()),
        1 => AgentSettings::parse(path, text).err().map(|error| error.to_string()),
        _ => BrokerSettings::parse(path, text).err().map(|error| error.to_string()),
    };
    if let Some(said) = said {
        assert!(!said.contains('\n'), "{said:?}");
    }
}

/// The samples.
pub fn seeds() -> Vec<Vec<u8>> {
    let samples: [&str; 3] = [
        include_str!("../../../deploy/coordinator.toml"),
        include_str!("../../../deploy/agent.toml"),
        include_str!("../../../deploy/broker.toml"),
    ];
    let mut all = Vec::new();
    for (choice, sample) in (0..).zip(samples) {
        // Comments teach a fuzzer nothing.
        let lines = sample.lines().filter(|line| !line.trim_start().starts_with('#') && !line.is_empty());
        let lines: Vec<&str> =
            lines.map(|line| line.split(" # ").next().unwrap_or(line).trim_end()).collect();
        all.push([&[choice], lines.join("\n").as_bytes()].concat());
    }
    all.push(
        b"\0[[manufacturers]]\nname = \"acme\"\nroots = \"acme.pem\"\nlabels = \"maker=acme\"\n".to_vec(),
    );
    all.push(
        b"\x02[gate.kick.rabbitmq]\nurl = \"http://127.0.0.1:15672\"\nuser = \"a\"\nsecret_file = \"s\"\n"
            .to_vec(),
    );
    all
}
