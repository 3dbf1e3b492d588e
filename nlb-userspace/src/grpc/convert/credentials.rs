//! The registration_id as gRPC metadata, for calls whose messages have no field for it.

use tonic::Request;

/// Both spellings: names of metadata usually have hyphens, and fields have underscores.
const KEYS: [&str; 2] = ["registration-id", "registration_id"];

/// The id in the call's metadata; empty if there is none.
pub(crate) fn beside<T>(request: &Request<T>) -> String {
    let given = KEYS.iter().find_map(|key| request.metadata().get(*key));
    given.map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned()).unwrap_or_default()
}

/// Fills the message's field from the metadata if it is empty.
pub(crate) fn fill<T>(request: Request<T>, field: impl FnOnce(&mut T) -> &mut String) -> T {
    let id = beside(&request);
    let mut message = request.into_inner();
    let field = field(&mut message);
    if field.is_empty() {
        *field = id;
    }
    message
}
