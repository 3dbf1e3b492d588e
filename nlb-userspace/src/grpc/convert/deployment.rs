//! Deployments by name: in an instance's metadata, and in the gRPC metadata of a call, since the messages
//! have no field for them.

use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};

use super::error::CallError;
use super::validate::{self, FieldViolation};
use crate::model::{Deployment, ModuleType, Texts};
use crate::registry::{ALL, Scope};

/// The key in both.
pub(crate) const KEY: &str = "deployment";

const FIELD: &str = "metadata.deployment";

/// The deployment of an instance.
pub(crate) fn of_instance(metadata: &Texts, module_type: ModuleType) -> Result<Deployment, FieldViolation> {
    match metadata.get(KEY).map(String::as_str) {
        None | Some("") => Ok(module_type.into()),
        Some(ALL) => {
            let problem = format!("{ALL:?} stands for every deployment in calls; choose another name");
            Err(FieldViolation::new(FIELD, problem))
        }
        Some(name) => match ModuleType::ALL.into_iter().find(|known| known.name() == name) {
            Some(other) if other != module_type => {
                let problem = format!(
                    "{name:?} is the deployment of modules of that type, and this one is of type {}; leave it out, or \
                     choose another name",
                    module_type.name()
                );
                Err(FieldViolation::new(FIELD, problem))
            }
            _ => visible(name),
        },
    }
}

/// The deployments that a call names.
pub(crate) fn named<T>(request: &Request<T>) -> Result<Scope, CallError> {
    let Some(value) = request.metadata().get(KEY) else { return Ok(Scope::Implied) };
    match &*String::from_utf8_lossy(value.as_bytes()) {
        "" => Ok(Scope::Implied),
        ALL => Ok(Scope::All),
        name => Ok(Scope::One(visible(name)?)),
    }
}

/// How a call that is passed on names them.
pub(crate) fn to_metadata(scope: &Scope) -> Option<MetadataValue<Ascii>> {
    let name = match scope {
        Scope::Implied => return None,
        Scope::One(deployment) => deployment.name(),
        Scope::All => ALL,
    };
    Some(name.parse().expect("visible ASCII characters are a value of metadata"))
}

/// A name that metadata of calls can carry.
fn visible(name: &str) -> Result<Deployment, FieldViolation> {
    if !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(FieldViolation::new(FIELD, format!("{name:?} has other than visible ASCII characters")));
    }
    validate::id(FIELD, name).map(Deployment::named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_in_the_deployment_that_it_names_or_that_of_its_type() {
        let of = |name: &str| {
            let metadata = [(KEY.to_owned(), name.to_owned())].into_iter().collect();
            of_instance(&metadata, ModuleType::Dblb).map(|deployment| deployment.name().to_owned())
        };
        assert_eq!(of_instance(&Texts::new(), ModuleType::Alb), Ok(Deployment::named("ALB")));
        assert_eq!((of(""), of("orders")), (Ok("DBLB".into()), Ok("orders".into())));
        assert_eq!((of("DBLB"), of("alb")), (Ok("DBLB".into()), Ok("alb".into())));
        for bad in ["all", "ALB", "NLB", "two words", "a,b", "caf\u{e9}", &"x".repeat(129)] {
            assert_eq!(of(bad).unwrap_err().field, "metadata.deployment", "{bad:?}");
        }
    }

    #[test]
    fn a_call_names_what_it_was_given() {
        for (scope, name) in [(Scope::One(Deployment::named("orders")), "orders"), (Scope::All, "all")] {
            let mut request = Request::new(());
            let value = to_metadata(&scope).unwrap();
            assert_eq!(value, name);
            request.metadata_mut().insert(KEY, value);
            assert_eq!(named(&request).unwrap(), scope);
        }
        assert_eq!(named(&Request::new(())).unwrap(), Scope::Implied);
        assert_eq!(to_metadata(&Scope::Implied), None);
        let mut odd = Request::new(());
        odd.metadata_mut().insert(KEY, MetadataValue::try_from(&b"caf\xe9"[..]).unwrap());
        assert!(named(&odd).unwrap_err().to_string().starts_with("metadata.deployment: "));
    }
}
