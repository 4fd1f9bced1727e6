//! Operators: whose token opens what until when, and where each of them may act.

#![expect(clippy::unwrap_used, reason = "a test's failure is its report")]

mod support;

use std::str::FromStr;

use fleetkey_coordinator_core::enrolment::{Application, ClaimTerms, Enrolment, Verdict};
use fleetkey_coordinator_core::operators::{MAX_OPERATOR_NAMES, MAX_OPERATORS, OperatorTerms};
use fleetkey_coordinator_core::records::{
    AuditRecord, OperatorName, OperatorRecord, OperatorRole, Record, Scope,
};
use fleetkey_coordinator_core::{
    Actor, CommandError, Coordinator, Labels, OutOfScope, Policy, ShownSecret, Store as _, Table, Write,
};
use fleetkey_wire::{DeviceId, GroupId, Now};
use rand_core::OsRng;
use support::*;

impl Desk {
    fn operator(&mut self, name: &str, role: OperatorRole, groups: &[GroupId]) -> ShownSecret {
        self.try_operator(name, role, groups, None).unwrap()
    }

    fn try_operator(
        &mut self,
        name: &str,
        role: OperatorRole,
        groups: &[GroupId],
        expires_unix_seconds: Option<u64>,
    ) -> Result<ShownSecret, CommandError> {
        let scope =
            if groups.is_empty() { Scope::Fleet } else { Scope::Groups(groups.iter().copied().collect()) };
        let terms = OperatorTerms { name: name.parse().unwrap(), role, scope, expires_unix_seconds };
        let made = self.coordinator.create_operator(terms, self.now, &mut OsRng);
        self.commit();
        made
    }

    fn holder(&self, token: &ShownSecret) -> Option<String> {
        let now = self.now.unix_seconds;
        let operators = self.coordinator.active_operators(now);
        operators.holder_of(token, now).map(|record| record.name.to_string())
    }

    /// What becomes of a command of this operator's; undone again.
    fn attempt<T>(
        &mut self,
        who: &str,
        act: impl FnOnce(&mut Coordinator, Now) -> Result<T, CommandError>,
    ) -> Result<(), CommandError> {
        let (actor, now) = (Actor::Operator(who.parse().unwrap()), self.now);
        self.coordinator.take_effects().unwrap();
        let done = self.coordinator.acting_for(actor, now, |coordinator| act(coordinator, now)).map(drop);
        let effects = self.coordinator.take_effects().unwrap();
        assert_eq!(effects.writes.is_empty(), done.is_err(), "{done:?}");
        self.reload();
        done
    }
}

#[test]
fn a_token_opens_until_its_operator_is_ended_or_it_expires() {
    let mut desk = Desk::new();
    let ops1 = desk.operator("ops1", OperatorRole::Admin, &[]);
    let ops2 = desk.try_operator("ops2", OperatorRole::Viewer, &[], Some(START + 60)).unwrap();
    desk.reload();
    assert_eq!((desk.holder(&ops1).as_deref(), desk.holder(&ops2).as_deref()), (Some("ops1"), Some("ops2")));
    assert_eq!(desk.holder(&"00".repeat(32).parse().unwrap()), None);
    desk.later(60);
    assert!(desk.holder(&ops2).is_some(), "its last second");
    desk.later(1);
    assert_eq!(desk.holder(&ops2), None);
    let name: OperatorName = "ops1".parse().unwrap();
    desk.coordinator.end_operator(&name, desk.now).unwrap();
    desk.commit();
    desk.reload();
    assert_eq!(desk.holder(&ops1), None);
    let again = desk.coordinator.end_operator(&name, desk.now);
    assert_eq!(again, Err(CommandError::UnknownOperator("ops1".into())));
    for who in ["ops1", "ops2", "nobody"] {
        let refused = desk.attempt(who, |coordinator, now| coordinator.end_operator(&name, now));
        assert_eq!(refused, Err(CommandError::NotAnOperator(who.parse().unwrap())), "decided after the end");
    }
}

#[test]
fn a_token_is_kept_as_a_digest_and_a_name_is_given_once() {
    let mut desk = Desk::new();
    let ops1 = desk.operator("ops1", OperatorRole::Admin, &[]);
    let rows = desk.store.rows(Table::Operator).unwrap();
    let token = hex::decode(ops1.reveal().as_str()).unwrap();
    let holds = |needle: &[u8]| rows[0].value.windows(32).any(|window| window == needle);
    assert!(holds(&ops1.digest()) && !holds(&token));
    desk.coordinator.end_operator(&"ops1".parse().unwrap(), desk.now).unwrap();
    let again = desk.try_operator("ops1", OperatorRole::Viewer, &[], None);
    assert_eq!(again.unwrap_err(), CommandError::NameTaken("ops1".into()));
    let log = desk.store.rows(Table::Audit).unwrap();
    let told: Vec<AuditRecord> = log.iter().map(|row| AuditRecord::read(row).unwrap()).collect();
    let told: Vec<(&str, &str, &str)> =
        told.iter().map(|e| (e.action.as_str(), e.subject.as_str(), e.detail.as_str())).collect();
    assert_eq!(told, [("create_operator", "ops1", "admin of the fleet"), ("end_operator", "ops1", "")]);
}

#[test]
fn operators_that_make_no_sense_are_refused() {
    let mut desk = Desk::new();
    let group = desk.create_group("pumps");
    let elsewhere = GroupId::from_bytes([9; 16]);
    let refused = |made: Result<ShownSecret, CommandError>| made.unwrap_err();
    assert!(matches!(
        refused(desk.try_operator("a", OperatorRole::Admin, &[group], None)),
        CommandError::BadOperator(_)
    ));
    assert_eq!(
        refused(desk.try_operator("a", OperatorRole::Viewer, &[elsewhere], None)),
        CommandError::UnknownGroup(elsewhere)
    );
    assert!(matches!(
        refused(desk.try_operator("a", OperatorRole::Viewer, &[], Some(START))),
        CommandError::BadOperator(_)
    ));
    let many = "a".repeat(65);
    for name in ["", "root", "coordinator", "Root", "device:x", "a b", "\u{430}nna", many.as_str()] {
        assert!(name.parse::<OperatorName>().is_err(), "{name}");
    }
}

/// So many operators, in the store as if they had been made one by one.
fn many(desk: &mut Desk, count: usize, expires_unix_seconds: Option<u64>, ended_unix_seconds: Option<u64>) {
    let records = (0..count).map(|number| OperatorRecord {
        name: format!("ops-{number}").parse().unwrap(),
        role: OperatorRole::Viewer,
        scope: Scope::Fleet,
        token_digest: ShownSecret::from_str(&format!("{number:064x}")).unwrap().digest(),
        created_unix_seconds: START,
        expires_unix_seconds,
        ended_unix_seconds,
    });
    let writes: Vec<Write> = records.map(|record| record.put()).collect();
    desk.store.commit(&writes).unwrap();
    desk.reload();
}

#[test]
fn operators_that_were_ended_or_have_expired_take_nobodys_place() {
    let mut desk = Desk::new();
    let end = |desk: &mut Desk, name: &str| {
        desk.coordinator.end_operator(&name.parse().unwrap(), desk.now).unwrap();
        desk.commit();
    };
    many(&mut desk, MAX_OPERATORS, None, None);
    let full = |desk: &mut Desk| desk.try_operator("late", OperatorRole::Viewer, &[], None);
    assert_eq!(full(&mut desk).unwrap_err(), CommandError::TooManyOperators);
    end(&mut desk, "ops-7");
    let again = desk.try_operator("ops-7", OperatorRole::Viewer, &[], None);
    assert_eq!(again.unwrap_err(), CommandError::NameTaken("ops-7".into()));
    full(&mut desk).unwrap();
    let one_more = desk.try_operator("later", OperatorRole::Viewer, &[], None);
    assert_eq!(one_more.unwrap_err(), CommandError::TooManyOperators);

    let mut desk = Desk::new();
    many(&mut desk, MAX_OPERATORS, Some(START + 60), None);
    assert_eq!(full(&mut desk).unwrap_err(), CommandError::TooManyOperators);
    desk.later(61);
    full(&mut desk).unwrap();
}

#[test]
fn names_of_operators_are_remembered_up_to_a_limit() {
    let mut desk = Desk::new();
    many(&mut desk, MAX_OPERATOR_NAMES - 1, None, Some(START));
    desk.operator("last", OperatorRole::Admin, &[]);
    let one_more = desk.try_operator("late", OperatorRole::Viewer, &[], None);
    assert_eq!(one_more.unwrap_err(), CommandError::TooManyOperatorNames);
}

/// Two groups with a selector each, and devices in one, in the other, in both, and in none.
struct Halls {
    desk: Desk,
    ours: GroupId,
    theirs: GroupId,
    in_ours: DeviceId,
    in_theirs: DeviceId,
    in_both: DeviceId,
    in_none: DeviceId,
}

fn labels(text: &str) -> Labels {
    text.parse().unwrap()
}

impl Halls {
    fn new() -> Self {
        let mut desk = Desk::new();
        let (ours, theirs) = (desk.group("ours", "hall=1"), desk.group("theirs", "hall=2"));
        let [in_ours, in_theirs, in_both, in_none] =
            ["in-ours", "in-theirs", "in-both", "in-none"].map(|name| desk.enrol_by_hand(name));
        let now = desk.now;
        desk.coordinator.add_members(ours, &[in_ours, in_both], now, &mut OsRng).unwrap();
        desk.coordinator.add_members(theirs, &[in_theirs, in_both], now, &mut OsRng).unwrap();
        desk.operator("ops2", OperatorRole::Operator, &[ours]);
        desk.operator("ops1", OperatorRole::Operator, &[]);
        Self { desk, ours, theirs, in_ours, in_theirs, in_both, in_none }
    }

    /// What becomes of ops2's command; ops1, whose scope is the fleet, may give the same.
    fn ops2<T>(
        &mut self,
        act: impl Fn(&mut Coordinator, Now) -> Result<T, CommandError>,
    ) -> Result<(), CommandError> {
        let ops1 = self.desk.attempt("ops1", &act);
        assert_eq!(ops1, Ok(()), "or the scope is not what it is refused for");
        self.desk.attempt("ops2", &act)
    }
}

fn scope(out: OutOfScope) -> Result<(), CommandError> {
    Err(CommandError::OutOfScope(out))
}

#[test]
fn a_scoped_operator_acts_within_the_scope_alone() {
    let mut halls = Halls::new();
    let Halls { ours, theirs, in_ours, in_theirs, in_both, in_none, .. } = halls;
    let not_theirs = || scope(OutOfScope::Group(theirs));
    let not_seen = || scope(OutOfScope::Device { device: in_theirs });
    let elsewhere = || scope(OutOfScope::DeviceElsewhere { device: in_both, group: theirs });

    assert_eq!(halls.ops2(|c, now| c.rekey(ours, now, &mut OsRng)), Ok(()));
    assert_eq!(halls.ops2(|c, now| c.rekey(theirs, now, &mut OsRng)), not_theirs());
    assert_eq!(halls.ops2(|c, now| c.rotate(theirs, now, &mut OsRng)), not_theirs());
    let fleet = scope(OutOfScope::Fleet);
    let new = |c: &mut Coordinator, now| c.create_group("new", Policy::default(), now, &mut OsRng);
    assert_eq!(halls.ops2(new), fleet);
    let (id, key) = (DeviceId::random(&mut OsRng), key());
    assert_eq!(halls.ops2(|c, now| c.enroll_device(id, "new", key, now)), fleet);
    let terms = || OperatorTerms {
        name: "eve".parse().unwrap(),
        role: OperatorRole::Viewer,
        scope: Scope::Fleet,
        expires_unix_seconds: None,
    };
    assert_eq!(halls.ops2(|c, now| c.create_operator(terms(), now, &mut OsRng)), fleet);
    assert_eq!(halls.ops2(|c, now| c.end_operator(&"ops1".parse().unwrap(), now)), fleet);

    assert_eq!(halls.ops2(|c, now| c.add_members(ours, &[in_none], now, &mut OsRng)), Ok(()));
    assert_eq!(halls.ops2(|c, now| c.add_members(ours, &[in_theirs], now, &mut OsRng)), not_seen());
    assert_eq!(halls.ops2(|c, now| c.add_members(theirs, &[in_ours], now, &mut OsRng)), not_theirs());
    assert_eq!(halls.ops2(|c, now| c.evict(ours, &[in_both], now, &mut OsRng)), Ok(()));
    assert_eq!(halls.ops2(|c, now| c.evict(theirs, &[in_both], now, &mut OsRng)), not_theirs());

    assert_eq!(halls.ops2(|c, now| c.revoke(&[in_ours], "x", now, &mut OsRng)), Ok(()));
    assert_eq!(halls.ops2(|c, now| c.revoke(&[in_ours, in_both], "x", now, &mut OsRng)), elsewhere());
    assert_eq!(halls.ops2(|c, now| c.revoke(&[in_theirs], "x", now, &mut OsRng)), not_seen());
    let nobodys = scope(OutOfScope::Device { device: in_none });
    assert_eq!(halls.ops2(|c, now| c.revoke(&[in_none], "x", now, &mut OsRng)), nobodys);

    let label = |device, text: &'static str| {
        move |c: &mut Coordinator, now: Now| c.label_device(device, labels(text), now, &mut OsRng)
    };
    assert_eq!(halls.ops2(label(in_ours, "floor=2")), Ok(()));
    let led = || scope(OutOfScope::LabelsElsewhere { group: theirs });
    assert_eq!(halls.ops2(label(in_ours, "hall=2")), led());
    assert_eq!(halls.ops2(label(in_both, "floor=2")), elsewhere());

    let select = |group, text: &'static str| {
        move |c: &mut Coordinator, now: Now| c.select_members(group, Some(labels(text)), now, &mut OsRng)
    };
    assert_eq!(halls.ops2(select(ours, "hall=1,floor=2")), fleet, "it would reach other claims and devices");
}

#[test]
fn claims_and_requests_lead_into_the_scope_alone() {
    let mut halls = Halls::new();
    let theirs = halls.theirs;
    let claim = |text: &'static str| {
        move |c: &mut Coordinator, now: Now| {
            let terms = ClaimTerms {
                note: String::new(),
                uses: 1,
                expires_unix_seconds: START + DAY,
                labels: labels(text),
                needs_approval: false,
            };
            c.create_claim(terms, now, &mut OsRng)
        }
    };
    let led = || scope(OutOfScope::LabelsElsewhere { group: theirs });
    assert_eq!(halls.ops2(claim("hall=1")), Ok(()));
    assert_eq!(halls.ops2(claim("hall=2")), led());
    assert_eq!(halls.ops2(claim("")), scope(OutOfScope::Labels));

    for (text, expected) in [("hall=1", Ok(())), ("hall=2", led()), ("floor=9", scope(OutOfScope::Labels))] {
        let shown = halls.desk.claim(1, true, text);
        let id = shown.id;
        let applied = halls.desk.apply(&Application { verdict: Verdict::Approve, ..by_claim(&shown, key()) });
        let Ok(Enrolment::Waits { device }) = applied else { panic!("{applied:?}") };
        assert_eq!(halls.ops2(|c, now| c.approve(device, now, &mut OsRng)), expected, "{text}");
        assert_eq!(halls.ops2(|c, now| c.deny(device, now)), expected, "{text}");
        assert_eq!(halls.ops2(|c, now| c.forget_request(device, now)), expected, "{text}");
        assert_eq!(halls.ops2(|c, now| c.end_claim(id, now)), expected, "{text}");
    }
}

#[test]
fn a_scoped_operator_sees_the_scope_alone() {
    let mut halls = Halls::new();
    let Halls { ours, theirs, in_ours, in_theirs, in_both, in_none, .. } = halls;
    let seen = halls.desk.coordinator.acting_for(
        Actor::Operator("ops2".parse().unwrap()),
        halls.desk.now,
        |coordinator| {
            let devices =
                [in_ours, in_theirs, in_both, in_none].map(|device| coordinator.sees_device(device));
            Ok((devices, [ours, theirs].map(|group| coordinator.sees_group(group))))
        },
    );
    assert_eq!(seen, Ok(([true, false, true, false], [true, false])));
    assert!(halls.desk.coordinator.sees_device(in_none), "the coordinator itself sees everything again");
}

#[test]
fn what_is_done_is_entered_under_the_operators_name() {
    let mut halls = Halls::new();
    let (ours, now) = (halls.ours, halls.desk.now);
    let ops2 = Actor::Operator("ops2".parse().unwrap());
    halls.desk.coordinator.acting_for(ops2, now, |c| c.rekey(ours, now, &mut OsRng)).unwrap();
    halls.desk.commit();
    let log = halls.desk.store.rows(Table::Audit).unwrap();
    let last = AuditRecord::read(log.last().unwrap()).unwrap();
    assert_eq!((last.who.as_str(), last.action.as_str()), ("ops2", "rekey"));
}
