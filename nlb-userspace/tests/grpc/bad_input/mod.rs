//! Bad values for every field of every request. The fields come from the descriptors, and the expected result
//! of a bad value from a table. A field without a row fails the test, so that a new field needs a row.

mod fields;
mod sound;
mod table;
mod wire;

use std::collections::BTreeSet;

use prost::Message as _;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Status};

use self::fields::{Bad, Call, Contract, Field};
use self::sound::Fleet;
use self::table::Then;
use crate::fake_module::Bytes;

// Several threads: otherwise a message of 10 MB would look like a standstill of the daemon, which extends
// leases.

#[tokio::test(flavor = "multi_thread")]
async fn nlb_service_refuses_it() {
    every_field_of("NLBService").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn module_service_refuses_it() {
    every_field_of("ModuleService").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operator_service_refuses_it() {
    every_field_of("OperatorService").await;
}

#[test]
fn every_row_of_the_table_is_about_a_field() {
    let contract = Contract::read();
    let fields: Vec<Field> = contract.calls.iter().flat_map(|call| contract.fields(call)).collect();
    let known: BTreeSet<&str> =
        fields.iter().flat_map(|field| [field.declared.as_str(), field.place.as_str()]).collect();
    let stale: Vec<&str> = table::names().filter(|name| !known.contains(name)).collect();
    assert!(stale.is_empty(), "no request has {stale:?}");
    let mut named = BTreeSet::new();
    let twice: Vec<&str> = table::names().filter(|name| !named.insert(*name)).collect();
    assert!(twice.is_empty(), "{twice:?} are in two rows");
}

#[tokio::test]
async fn leases_that_are_extended_are_no_change_and_one_that_is_renewed_is() {
    let fleet = Fleet::start().await;
    let before = fleet.state();
    fleet.nlb.registry.extend_leases(std::time::Duration::from_millis(300));
    assert_eq!(fleet.state(), before);
    let heartbeat = Request::new(fleet.heartbeat());
    assert!(fleet.nlb.modules.clone().heartbeat(heartbeat).await.unwrap().into_inner().acknowledged);
    assert_ne!(fleet.state(), before);
}

async fn every_field_of(service: &str) {
    let contract = Contract::read();
    let mut problems = Vec::new();
    let mut seen = BTreeSet::new();
    for call in contract.calls.iter().filter(|call| call.service == service) {
        let mut fleet = Fleet::start().await;
        let sound = fleet.request(&call.name);
        match send(&fleet, call, sound).await {
            Ok(answer) => {
                assert_eq!(refusal(&contract, call, &answer), None, "{}: a sound request", call.name)
            }
            Err(status) => panic!("{}: a sound request: {status}", call.name),
        }
        fleet = Fleet::start().await;
        for field in contract.fields(call) {
            let Some(row) = table::row(&field) else {
                problems.push(format!("{} ({}) is in no row of the table", field.place, field.declared));
                continue;
            };
            let sound = fleet.request(&call.name);
            for (bad, raw) in field.spoilt(&sound, seen.insert(field.declared.clone())) {
                let message = wire::replaced(&fleet.request(&call.name), &field.path, &raw);
                let before = fleet.state();
                let outcome = send(&fleet, call, message).await;
                let after = fleet.state();
                let refused = match &outcome {
                    Ok(answer) => refusal(&contract, call, answer),
                    Err(status) => Some((status.code(), status.message().to_owned())),
                };
                let accepted = refused.is_none();
                if let Err(problem) = judge(&field, bad, table::then(row, bad), refused, before == after) {
                    problems.push(format!("{} {bad:?}: {problem}", field.place));
                }
                if accepted {
                    fleet = Fleet::start().await;
                }
            }
        }
    }
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

fn judge(
    field: &Field,
    bad: Bad,
    then: Option<&Then>,
    refused: Option<(Code, String)>,
    unchanged: bool,
) -> Result<(), String> {
    let own_name = field.place.rsplit('.').next().unwrap_or_default();
    let (code, named) = match (bad, then) {
        (_, Some(Then::Accepted(why))) => {
            return match refused {
                None => Ok(()),
                Some((code, message)) => {
                    Err(format!("refused with {code:?}, but should be accepted ({why}): {}", brief(&message)))
                }
            };
        }
        (_, Some(Then::Refused(code, named))) => (*code, *named),
        // Bytes that are no message of this type get the status that gRPC has for that.
        (Bad::NotUtf8 | Bad::WrongWireType, None) => (Code::Internal, own_name),
        // Messages with one value are named as a whole.
        _ if field.declared.starts_with("Timestamp.") => {
            (Code::InvalidArgument, field.name.rsplit_once('.').expect("it is inside another").0)
        }
        _ => (Code::InvalidArgument, field.name.as_str()),
    };
    let Some((actual, message)) = refused else { return Err("accepted".to_owned()) };
    if actual != code {
        return Err(format!("refused with {actual:?} instead of {code:?}: {}", brief(&message)));
    }
    if !message.contains(named) {
        return Err(format!("the refusal does not name {named}: {}", brief(&message)));
    }
    if message.len() > 4096 {
        return Err(format!("the refusal has {} bytes: {}", message.len(), brief(&message)));
    }
    if !unchanged {
        return Err("refused, and yet the state changed, or a module was called".to_owned());
    }
    Ok(())
}

fn brief(message: &str) -> String {
    message.chars().take(200).collect()
}

/// The refusal in a response: its Error, or the violations that validation found.
fn refusal(contract: &Contract, call: &Call, answer: &[u8]) -> Option<(Code, String)> {
    let inner = |field| contract.number(&call.response, field).map(|number| wire::inside(answer, number));
    if let Some(error) = inner("error").and_then(|found| found.into_iter().next()) {
        let error = nlb_proto::Error::decode(error).expect("the NLB sends whole messages");
        let code = match error.code() {
            nlb_proto::StatusCode::InvalidArgument => Code::InvalidArgument,
            nlb_proto::StatusCode::ResourceExhausted => Code::ResourceExhausted,
            nlb_proto::StatusCode::NotFound => Code::NotFound,
            nlb_proto::StatusCode::AlreadyExists => Code::AlreadyExists,
            _ => Code::Unknown,
        };
        return Some((code, error.message));
    }
    let found = inner("validation_errors").filter(|found| !found.is_empty())?;
    let lines: Vec<_> = found.into_iter().map(String::from_utf8_lossy).collect();
    Some((Code::InvalidArgument, lines.join("; ")))
}

/// The answer; of streams, the first message.
async fn send(fleet: &Fleet, call: &Call, message: Vec<u8>) -> Result<Vec<u8>, Status> {
    let mut client = tonic::client::Grpc::new(fleet.channel.clone()).max_decoding_message_size(usize::MAX);
    client.ready().await.expect("the server listens");
    let path = PathAndQuery::try_from(format!("/marchproxy.{}/{}", call.service, call.name)).unwrap();
    let request = Request::new(message);
    if !call.streams {
        return Ok(client.unary(request, path, Bytes).await?.into_inner());
    }
    let mut stream = client.server_streaming(request, path, Bytes).await?.into_inner();
    Ok(stream.message().await?.expect("a stream begins with a message"))
}
