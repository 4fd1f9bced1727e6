//! From a certificate's common name to a party of the fleet.
//!
//! The fleet's CA writes the common name after the name that it certifies, and one spelling is all that is read. Leaves
//! to the broker that the certificate is one of that CA's.

use fleetkey_policy::Party;

use crate::refused::Refused;

/// Who has this common name.
pub(crate) fn party_of(common_name: &str) -> Result<Party, Refused> {
    if let Ok(device) = common_name.parse() {
        return Ok(Party::Device(device));
    }
    match common_name.split_once(':') {
        None if common_name == "broker" => Ok(Party::Broker),
        Some(("operator", _)) => Ok(Party::Operator),
        Some(("coordinator", generation))
            if generation.parse::<u32>().is_ok_and(|number| number.to_string() == generation) =>
        {
            Ok(Party::Coordinator)
        }
        None | Some(_) => Err(Refused::UnknownName),
    }
}

#[cfg(test)]
mod tests {
    use fleetkey_wire::DeviceId;

    use super::*;

    #[test]
    fn a_party_has_one_spelling() {
        let device = DeviceId::from_bytes([0xab; 16]);
        let name = device.to_string();
        assert_eq!(party_of(&name), Ok(Party::Device(device)));
        assert_eq!(party_of("coordinator:0"), Ok(Party::Coordinator));
        assert_eq!(party_of("coordinator:4294967295"), Ok(Party::Coordinator));
        assert_eq!(party_of("broker"), Ok(Party::Broker));
        assert_eq!(party_of("operator:ada"), Ok(Party::Operator));
        for look_alike in [
            String::new(),
            "undefined".to_owned(),
            name.to_uppercase(),
            format!("{name} "),
            format!("device:{name}"),
            name.replace('-', ""),
            "coordinator".to_owned(),
            "coordinator:".to_owned(),
            "coordinator:01".to_owned(),
            "coordinator:+1".to_owned(),
            "coordinator:4294967296".to_owned(),
            "coordinator:1:1".to_owned(),
            "Coordinator:1".to_owned(),
            "c\u{43e}ordinator:1".to_owned(),
        ] {
            assert_eq!(party_of(&look_alike), Err(Refused::UnknownName), "{look_alike:?}");
        }
    }
}
