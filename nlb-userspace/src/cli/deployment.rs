//! `--deployment`: which deployment a command about versions is for.

use anyhow::Context as _;
use tonic::Request;

#[derive(clap::Args)]
pub(super) struct Named {
    /// The deployment, or `all` [the only one that it can be]
    #[arg(long, value_name = "NAME")]
    deployment: Option<String>,
}

impl Named {
    /// The call, with the deployment in its metadata.
    pub(super) fn request<T>(&self, message: T) -> anyhow::Result<Request<T>> {
        let mut request = Request::new(message);
        if let Some(name) = &self.deployment {
            let value = name.parse().with_context(|| format!("--deployment {name:?} is not ASCII"))?;
            request.metadata_mut().insert("deployment", value);
        }
        Ok(request)
    }
}
