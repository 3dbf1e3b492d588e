//! The command line: the daemon, and the commands that call a running one.

mod connection;
mod decap;
mod deployment;
mod limits;
mod load;
mod metrics;
mod modules;
mod output;
mod route;
mod routes;
mod scale;
mod status;
mod steer;
mod table;
mod versions;

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use output::Output;

use crate::config::{Configuration, Options};
use crate::daemon;

/// The MarchProxy NLB: an L4 load balancer in the kernel, controlled over gRPC
#[derive(Parser)]
#[command(name = "nlb", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    view: ClientOptions,
}

/// The options of commands that call a running NLB.
#[derive(clap::Args)]
struct ClientOptions {
    /// The address of the NLB
    #[arg(
        long,
        global = true,
        env = "NLB_SERVER",
        default_value = "127.0.0.1:50051",
        value_name = "HOST:PORT"
    )]
    server: String,
    /// The format of the answer
    #[arg(long, global = true, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon
    Serve(Box<Options>),
    /// Run on a module's host: decapsulate packets of dsr-ipip and gue
    Decap(decap::Settings),
    #[command(flatten)]
    Ask(RemoteCommand),
}

/// The commands that call a running NLB.
#[derive(Subcommand)]
enum RemoteCommand {
    /// Show status
    Status(status::StatusArgs),
    /// List the registered modules
    Modules(modules::Filters),
    /// List the routes, and the modules that serve them
    Routes(routes::Filters),
    /// Set a module's or a version's share of new flows
    Weight(steer::Weight),
    /// Shift all new flows to a version, at once or in steps
    Promote(versions::Promote),
    /// Restore the previous traffic split
    Rollback(versions::Rollback),
    /// Stop new flows to a module, and wait until its connections have closed
    Drain(steer::Drain),
    /// End the registration of a module that no longer serves, at once
    Remove(steer::Remove),
    /// Add or remove a route
    #[command(subcommand)]
    Route(route::Change),
    /// List the rate limits, and their counts of passed and refused
    Limits(limits::Filters),
    /// Set or remove a rate limit
    #[command(subcommand)]
    Limit(limits::Change),
    /// Ask a group of modules for more or fewer instances, or set how it scales
    Scale(scale::Scale),
    /// Show metrics
    Metrics(metrics::MetricsArgs),
    /// Show the load of each module, and how even it is
    Load(load::Period),
    /// Change weights so that load evens out; existing flows stay where they are
    Rebalance(load::Rebalance),
}

/// Runs the command that the process was started with.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nlb: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(cli: Cli) -> anyhow::Result<()> {
    let command = match cli.command {
        Command::Serve(options) => {
            let (config, configuration) = Configuration::start(*options)?;
            start_log();
            return multi_threaded()?.block_on(daemon::run(config, configuration));
        }
        Command::Decap(settings) => {
            start_log();
            return single_threaded()?.block_on(decap::run(settings));
        }
        Command::Ask(command) => command,
    };
    let answer = single_threaded()?.block_on(ask(command, &cli.view))?;
    match io::stdout().write_all(answer.as_bytes()) {
        // The reader has closed the pipe.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

async fn ask(command: RemoteCommand, view: &ClientOptions) -> anyhow::Result<String> {
    let channel = connection::open(&view.server).await?;
    let asked = match command {
        RemoteCommand::Status(args) => status::show(channel, args, view.output).await,
        RemoteCommand::Modules(filters) => modules::list(channel, filters, view.output).await,
        RemoteCommand::Routes(filters) => routes::list(channel, filters, view.output).await,
        RemoteCommand::Weight(weight) => steer::weight(channel, weight, view.output).await,
        RemoteCommand::Promote(promote) => versions::promote(channel, promote, view.output).await,
        RemoteCommand::Rollback(rollback) => versions::roll_back(channel, rollback, view.output).await,
        RemoteCommand::Route(change) => route::change(channel, change, view.output).await,
        RemoteCommand::Limits(filters) => limits::list(channel, filters, view.output).await,
        RemoteCommand::Limit(change) => limits::change(channel, change, view.output).await,
        RemoteCommand::Scale(scale) => scale::scale(channel, scale, view.output).await,
        RemoteCommand::Metrics(args) => metrics::list(channel, args, view.output).await,
        RemoteCommand::Load(period) => load::show(channel, period, view.output).await,
        RemoteCommand::Rebalance(rebalance) => load::rebalance(channel, rebalance, view.output).await,
        RemoteCommand::Remove(remove) => steer::remove(channel, remove, view.output).await,
        RemoteCommand::Drain(drain) => steer::drain(channel, drain, view.output).await,
    };
    asked.with_context(|| format!("the NLB at {}", view.server))
}

/// Logs to standard error; `NLB_LOG` selects the level, such as `debug` or `nlb::registry=debug`.
fn start_log() {
    let filter = EnvFilter::try_from_env("NLB_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(io::stderr).init();
}

fn multi_threaded() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

fn single_threaded() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn former_spellings_of_flags_are_accepted() {
        assert!(Cli::try_parse_from(["nlb", "scale", "echo-1", "--by-hand"]).is_ok());
    }
}
