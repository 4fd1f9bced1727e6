//! What is printed: JSON as the API gave it, or tables for people.

use std::io::Write;

use fleetkey_coordinator::api::{DeviceView, Examined, FindingView, MembershipView};
use fleetkey_coordinator::when;
use fleetkey_coordinator_core::Standing;
use serde_json::Value;

pub(crate) fn json(out: &mut impl Write, value: &Value) -> anyhow::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value).map_err(std::io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

/// A number in an answer; zero where there is none.
pub(crate) fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or(0)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("-")
}

/// "1 device", "2 devices".
pub(crate) fn count(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

pub(crate) fn devices(out: &mut impl Write, devices: &[DeviceView]) -> anyhow::Result<()> {
    let rows = devices.iter().map(|device| {
        let groups: Vec<&str> = device.groups.iter().map(|member| member.group_name.as_str()).collect();
        [
            device.name.clone(),
            device.id.to_string(),
            standing(&device.standing),
            online(device.online),
            groups.join(", "),
        ]
    });
    table(out, ["NAME", "ID", "STANDING", "LINK", "GROUPS"], rows.collect())
}

pub(crate) fn device(out: &mut impl Write, device: &DeviceView) -> anyhow::Result<()> {
    writeln!(out, "name      {}", device.name)?;
    writeln!(out, "id        {}", device.id)?;
    writeln!(out, "standing  {}", standing(&device.standing))?;
    writeln!(out, "link      {}", online(device.online))?;
    writeln!(out, "came by   {}", device.origin)?;
    if !device.labels.is_empty() {
        writeln!(out, "labels    {}", device.labels)?;
    }
    if device.groups.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let rows = device.groups.iter().map(|member| {
        [member.group_name.clone(), place(member), member.confirmed.clone(), holds_newest(member)]
    });
    table(out, ["GROUP", "CELL", "CONFIRMED", "NEWEST KEY"], rows.collect())
}

pub(crate) fn members(out: &mut impl Write, members: &[MembershipView]) -> anyhow::Result<()> {
    let rows = members.iter().map(|member| {
        [
            member.device_name.clone(),
            member.device.to_string(),
            online(member.online),
            place(member),
            member.confirmed.clone(),
            holds_newest(member),
        ]
    });
    table(out, ["NAME", "ID", "LINK", "CELL", "CONFIRMED", "NEWEST KEY"], rows.collect())
}

pub(crate) fn groups(out: &mut impl Write, answer: &Value) -> anyhow::Result<()> {
    let groups = answer["groups"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows = groups.iter().map(|group| {
        [
            text(group, "name").to_owned(),
            text(group, "id").to_owned(),
            text(group, "send").to_owned(),
            confirmed(group),
            number(group, "wanted").to_string(),
            cells(group).to_string(),
            rotation(group),
        ]
    });
    table(out, ["NAME", "ID", "KEY EPOCH", "CONFIRMED", "WANTED", "CELLS", "ROTATION"], rows.collect())
}

pub(crate) fn group(out: &mut impl Write, group: &Value) -> anyhow::Result<()> {
    let policy = &group["policy"];
    writeln!(out, "name       {}", text(group, "name"))?;
    writeln!(out, "id         {}", text(group, "id"))?;
    writeln!(
        out,
        "key epoch  {} (sealing with {}, accepting from {})",
        text(group, "key_epoch"),
        text(group, "send"),
        text(group, "oldest")
    )?;
    writeln!(out, "rotation   {}", rotation(group))?;
    if let Some(deadline) = group["deadlines"].as_array().and_then(|deadlines| deadlines.last()) {
        writeln!(out, "deadline   {}", deadline_of(deadline))?;
    }
    writeln!(
        out,
        "devices    {} confirmed, {} to come in, {} of the missing online",
        confirmed(group),
        number(group, "wanted"),
        number(group, "stragglers_online")
    )?;
    writeln!(out, "behind     {}", behind(&group["behind"]))?;
    psk(out, group)?;
    writeln!(
        out,
        "cells      {} of at most {} devices, {}",
        cells(group),
        number(policy, "cell_capacity"),
        text(policy, "suite")
    )?;
    Ok(())
}

fn deadline_of(deadline: &Value) -> String {
    let (key_epoch, until) = (text(deadline, "key_epoch"), time(deadline, "until_unix_seconds"));
    let outcome = &deadline["outcome"];
    if let Some(missed) = outcome.get("missed") {
        return format!("{key_epoch} by {until}: missed, {} without it then", number(missed, "missing"));
    }
    let kept = outcome.get("kept").map(|kept| format!("kept at {}", time(kept, "unix_seconds")));
    format!("{key_epoch} by {until}: {}", kept.as_deref().unwrap_or("open"))
}

/// The pre-shared key that a group asks for.
fn psk(out: &mut impl Write, group: &Value) -> anyhow::Result<()> {
    let psk = &group["psk"];
    if psk.is_null() {
        return Ok(());
    }
    let lacking = count(number(psk, "lacking"), "device");
    writeln!(out, "psk        {}, {lacking} not known to hold it", text(psk, "id"))?;
    if psk["installed"] == false {
        writeln!(out, "           NOT INSTALLED here, as after a restore: nobody can come in. Install it:")?;
        writeln!(out, "           fleetkey group psk {} FILE", text(group, "name"))?;
    }
    Ok(())
}

pub(crate) fn status(out: &mut impl Write, answer: &Value) -> anyhow::Result<()> {
    let coordinator = &answer["coordinator"];
    let stats = &answer["stats"];
    let is = |value: &Value, yes: &'static str, no: &'static str| {
        if value.as_bool().unwrap_or(false) { yes } else { no }
    };
    writeln!(out, "fleet        {}", text(coordinator, "fleet"))?;
    let superseded = &coordinator["superseded_by"];
    writeln!(
        out,
        "coordinator  {}, incarnation {}",
        if superseded.is_null() { "issuing" } else { "SUPERSEDED, it issues nothing" },
        number(coordinator, "incarnation")
    )?;
    if !superseded.is_null() {
        writeln!(
            out,
            "             it is a copy, or was rolled back, as device {} showed at {}:",
            text(superseded, "device"),
            time(superseded, "unix_seconds")
        )?;
        writeln!(
            out,
            "             end the other copy, stop this one, and run `fleetkey restore --in-place`"
        )?;
    }
    let restored = &coordinator["restored"];
    if !restored.is_null() {
        let (back, wanted) = (number(coordinator, "members"), number(coordinator, "wanted"));
        writeln!(
            out,
            "restored     at {} from a backup of {}, {back} of {} back",
            time(restored, "unix_seconds"),
            time(restored, "backup_unix_seconds"),
            count(back + wanted, "member")
        )?;
    }
    writeln!(out, "broker       {}", is(&answer["broker_connected"], "connected", "NOT CONNECTED"))?;
    writeln!(
        out,
        "devices      {} enrolled, {} online, {} quarantined, {} revoked",
        number(coordinator, "enrolled"),
        number(coordinator, "online"),
        number(coordinator, "quarantined"),
        number(coordinator, "revoked")
    )?;
    writeln!(
        out,
        "groups       {} in {}",
        number(coordinator, "groups"),
        count(number(coordinator, "cells"), "cell")
    )?;
    writeln!(out, "behind       {}", behind(&coordinator["behind"]))?;
    stored(out, &answer["store"])?;
    writeln!(out, "statements   {} signed since the start", number(coordinator, "signatures"))?;
    writeln!(out, "refused      {}", refusals(&coordinator["refusals"]))?;
    strangers(out, &coordinator["strangers"])?;
    writeln!(out)?;
    let kinds = [
        ("cell statements", "cell_statements"),
        ("cell commits", "cell_commits"),
        ("decided for one device", "down_decided"),
        ("answers", "down_answers"),
        ("catch-ups", "down_catch_ups"),
        ("re-sends", "down_resends"),
        ("published again", "republished"),
        ("received", "received"),
    ];
    let rows = kinds.map(|(name, key)| {
        let traffic = &stats[key];
        [
            name.to_owned(),
            number(traffic, "messages").to_string(),
            number(traffic, "bytes").to_string(),
            number(traffic, "max_bytes").to_string(),
        ]
    });
    table(out, ["MESSAGES", "COUNT", "BYTES", "LARGEST"], rows.to_vec())
}

/// Members that are behind, by cause.
fn behind(behind: &Value) -> String {
    let causes = [
        ("unconfirmed", "sent and not confirmed"),
        ("coming_in", "coming in"),
        ("lacks_psk", "without the group's pre-shared key"),
        ("asked_for_key_packages", "asked for key packages"),
        ("offline", "offline"),
        ("never_heard", "not heard since the start"),
        ("quarantined", "quarantined"),
    ];
    let shown: Vec<String> = causes
        .iter()
        .filter(|(key, _)| number(behind, key) > 0)
        .map(|(key, cause)| format!("{} {cause}", number(behind, key)))
        .collect();
    if shown.is_empty() { "nobody".into() } else { shown.join(", ") }
}

/// What is stored and not sent, and what was stored last.
fn stored(out: &mut impl Write, store: &Value) -> anyhow::Result<()> {
    if store.is_null() {
        return Ok(());
    }
    writeln!(out, "outbox       {}", count(number(store, "outbox"), "message"))?;
    let last = &store["last_step"];
    let transactions = number(last, "transactions");
    if transactions == 0 {
        writeln!(out, "last step    none since the start")?;
        return Ok(());
    }
    let tables: Vec<&str> =
        last["tables"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let what = last["command"].as_str().map_or_else(|| tables.join(", "), ToOwned::to_owned);
    writeln!(
        out,
        "last step    {} ({what}), {} since the start",
        time(last, "unix_seconds"),
        count(transactions, "transaction")
    )?;
    Ok(())
}

/// Strangers that are shown one by one.
const MAX_STRANGERS: usize = 10;

fn strangers(out: &mut impl Write, strangers: &Value) -> anyhow::Result<()> {
    let strangers = strangers.as_array().map(Vec::as_slice).unwrap_or_default();
    if strangers.is_empty() {
        return Ok(());
    }
    let speak = if strangers.len() == 1 { "speaks" } else { "speak" };
    writeln!(out, "unenrolled   {} that {speak}:", count(strangers.len() as u64, "device"))?;
    for stranger in strangers.iter().take(MAX_STRANGERS) {
        let heard = time(stranger, "heard_unix_seconds");
        writeln!(out, "             {}, last heard {heard}", text(stranger, "device"))?;
    }
    if strangers.len() > MAX_STRANGERS {
        writeln!(out, "             and {} more", strangers.len() - MAX_STRANGERS)?;
    }
    writeln!(
        out,
        "             those that are yours: `fleetkey device adopt CERTIFICATE` (device.crt of their bundle)"
    )?;
    Ok(())
}

/// What the doctor found, gravest first.
pub(crate) fn findings(out: &mut impl Write, examined: &Examined) -> anyhow::Result<()> {
    for finding in &examined.findings {
        let FindingView { name, severity, subject, detail, meaning, remedy } = finding;
        let shown = |text: &str| -> String { text.chars().flat_map(shown).collect() };
        writeln!(out, "{}  {name}: {}: {}", severity.to_uppercase(), shown(subject), shown(detail))?;
        writeln!(out, "    means: {meaning}")?;
        writeln!(out, "    do:    {remedy}")?;
    }
    let of = |severity: &str| examined.findings.iter().filter(|found| found.severity == severity).count();
    match examined.findings.len() {
        0 => writeln!(out, "sound: nothing was found")?,
        _ => writeln!(
            out,
            "{} broken, {} in need of attention, {} worth knowing",
            of("broken"),
            of("attention"),
            of("notice")
        )?,
    }
    Ok(())
}

/// "1 entry", "2 entries".
pub(crate) fn entries(n: usize) -> String {
    if n == 1 { "1 entry".into() } else { format!("{n} entries") }
}

fn time(value: &Value, key: &str) -> String {
    when::show(number(value, key))
}

fn refusals(refusals: &Value) -> String {
    let named: Vec<String> =
        refusals.as_object().into_iter().flatten().map(|(name, count)| format!("{count} {name}")).collect();
    if named.is_empty() { "nothing".into() } else { named.join(", ") }
}

fn standing(standing: &Standing) -> String {
    match standing {
        Standing::Enrolled => "enrolled".into(),
        Standing::Quarantined { .. } => "quarantined".into(),
        Standing::Revoked { reason, .. } if reason.is_empty() => "revoked".into(),
        Standing::Revoked { reason, .. } => format!("revoked: {reason}"),
    }
}

fn online(online: bool) -> String {
    if online { "online" } else { "offline" }.into()
}

fn place(member: &MembershipView) -> String {
    member.cell.map_or_else(|| "to come in".into(), |cell| cell.to_string())
}

fn holds_newest(member: &MembershipView) -> String {
    let held = if member.holds_newest { "held" } else { "-" };
    if member.lacks_psk { format!("{held}, lacks the group's pre-shared key") } else { held.into() }
}

fn confirmed(group: &Value) -> String {
    format!("{} of {}", number(group, "confirmed"), number(group, "members"))
}

fn cells(group: &Value) -> usize {
    group["cells"].as_array().map_or(0, Vec::len)
}

fn rotation(group: &Value) -> String {
    group["rotation"].as_object().and_then(|rotation| rotation.keys().next().cloned()).unwrap_or("-".into())
}

/// Columns as wide as their widest entry; control characters are shown, not obeyed.
fn table<const N: usize>(
    out: &mut impl Write,
    head: [&str; N],
    rows: Vec<[String; N]>,
) -> anyhow::Result<()> {
    let rows: Vec<[String; N]> = [head.map(str::to_owned)]
        .into_iter()
        .chain(rows)
        .map(|row| row.map(|cell| cell.chars().flat_map(shown).collect()))
        .collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in &rows {
        let line: String = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}  ")).collect();
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn shown(character: char) -> Vec<char> {
    if character.is_control() { character.escape_default().collect() } else { vec![character] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_control_characters_do_nothing() {
        let mut out = Vec::new();
        let rows = vec![["a".into(), "\x1b[2J".into()], ["long name".into(), "x".into()]];
        table(&mut out, ["NAME", "GROUP"], rows).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "NAME       GROUP\na          \\u{1b}[2J\nlong name  x\n");
    }
}
