//! Keys for ECH in answers of name servers, which policy may have taken out.

use hickory_resolver::proto::op::Message;
use hickory_resolver::proto::rr::rdata::SVCB;
use hickory_resolver::proto::rr::rdata::svcb::{SvcParamKey, SvcParamValue};
use hickory_resolver::proto::rr::{RData, Record, RecordType};

use super::answer::Malformed;

/// The answer without keys for ECH, with which a client would hide the name it asks a server for (RFC
/// 9849): they are a parameter of records that tell how to reach a host (RFC 9460). Everything else
/// stays, but for what would not be true any more: records which nobody may use without the key, and
/// what a signature said of the others. `Ok(None)`: there is no such key in it.
///
/// # Errors
/// It is malformed.
pub fn without_ech_keys(answer: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
    let mut message = Message::from_vec(answer).map_err(|_| Malformed)?;
    let mut changed = false;
    for section in [
        &mut message.answers,
        &mut message.authorities,
        &mut message.additionals,
    ] {
        changed |= strip(section);
    }
    if !changed {
        return Ok(None);
    }
    for section in [
        &mut message.answers,
        &mut message.authorities,
        &mut message.additionals,
    ] {
        section.retain(|record| !is_signature_of_service(record));
    }
    message.metadata.authentic_data = false;
    message.to_vec().map(Some).map_err(|_| Malformed)
}

/// Takes the keys out of these records; whether there were some.
fn strip(records: &mut Vec<Record>) -> bool {
    let mut changed = false;
    records.retain_mut(|record| {
        let Some(service) = service(&mut record.data) else {
            return true;
        };
        let params = &mut service.svc_params;
        let before = params.len();
        params.retain(|(key, _)| *key != SvcParamKey::EchConfigList);
        if params.len() == before {
            return true;
        }
        changed = true;
        // Section 8: a client that does not know a mandatory key passes over the record.
        !params.iter().any(|(_, value)| match value {
            SvcParamValue::Mandatory(keys) => keys.0.contains(&SvcParamKey::EchConfigList),
            _ => false,
        })
    });
    changed
}

fn service(data: &mut RData) -> Option<&mut SVCB> {
    match data {
        RData::SVCB(service) => Some(service),
        RData::HTTPS(service) => Some(&mut service.0),
        _ => None,
    }
}

/// Whether it signs records that tell how to reach a host (RFC 4034 section 3.1: the type that is
/// covered comes first).
fn is_signature_of_service(record: &Record) -> bool {
    const SERVICES: [RecordType; 2] = [RecordType::SVCB, RecordType::HTTPS];
    match &record.data {
        RData::Unknown { code, rdata } if *code == RecordType::RRSIG => {
            let covered = rdata
                .anything
                .first_chunk()
                .map(|it| u16::from_be_bytes(*it));
            covered.is_some_and(|covered| SERVICES.contains(&RecordType::from(covered)))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
