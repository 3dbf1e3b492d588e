//! The registration_id as gRPC metadata: for callers whose messages have no field for it in the contract.

use tonic::Request;

/// Either spelling. Names of metadata are usually written with hyphens, and fields with underscores.
const KEYS: [&str; 2] = ["registration-id", "registration_id"];

/// The id that the call carries beside its message; empty if there is none.
pub fn beside<T>(request: &Request<T>) -> String {
    let given = KEYS.iter().find_map(|key| request.metadata().get(*key));
    given.map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned()).unwrap_or_default()
}

/// The message's own field comes first.
pub fn fill<T>(request: Request<T>, field: impl FnOnce(&mut T) -> &mut String) -> T {
    let id = beside(&request);
    let mut message = request.into_inner();
    let field = field(&mut message);
    if field.is_empty() {
        *field = id;
    }
    message
}
