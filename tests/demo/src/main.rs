//! The demo behind `cargo xtask run`: the real daemon and real modules in network namespaces, a client that
//! sends requests continuously, and a table of the modules' shares. Another terminal can change a weight, or
//! kill or drain a module, meanwhile.

mod fleet;
mod grpc_forward;
mod table;
mod traffic;
mod view;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, interval, sleep_until};

use fleet::Fleet;
use table::{Content, Table};
use traffic::Traffic;
use view::View;

/// Show real connections being balanced
#[derive(Parser)]
struct Args {
    /// End after this time (such as 10s or 2m)
    #[arg(long, value_name = "TIME", value_parser = duration)]
    duration: Option<Duration>,
    /// Count a request as failed if it has no answer after this time
    #[arg(long, default_value = "3s", value_name = "TIME", value_parser = duration)]
    timeout: Duration,
    /// The address on this host that is forwarded to the NLB's gRPC server
    #[arg(long, default_value = "127.0.0.1:50051", value_name = "ADDRESS:PORT")]
    grpc: SocketAddr,
}

/// The programs of the lab end with the thread that started them. This future runs on the main thread.
#[tokio::main]
async fn main() -> ExitCode {
    match run(&Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nnlb-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> Result<()> {
    // From here on Ctrl-C ends the demo and removes what it has made, also during the set-up.
    let mut ending = Ending::new()?;
    let grpc_listener = grpc_forward::bind(args.grpc).await?;
    let grpc = grpc_listener.address()?;
    eprintln!("Making a network of namespaces: a client, the NLB, three modules");
    let mut fleet = Fleet::start()?;
    grpc_listener.start(fleet.lab.clone());
    let mut view = View::of(grpc)?;
    tokio::select! {
        registered = view.wait_for_modules(fleet.modules.len()) => registered.with_context(|| fleet.logs())?,
        () = ending.asked() => bail!("interrupted while the modules were starting"),
    }
    fleet.print_hints(grpc)?;

    let traffic = Traffic::start(&fleet.lab, args.timeout)?;
    let watched = watch(args, &mut fleet, &mut view, &traffic, &mut ending).await;
    let tally = traffic.stop()?;
    watched?;
    println!("\n{tally}");
    if tally.failed > 0 {
        let drops = view.drops().await.unwrap_or_default().join(", ");
        println!("packets that the data path dropped: {}", if drops.is_empty() { "none" } else { &drops });
        bail!("{} requests failed; the last one: {}", tally.failed, tally.last_failure);
    }
    if tally.answered == 0 {
        bail!("no request was made; run the demo for longer");
    }
    Ok(())
}

/// Shows the table until the time is over or a signal ends the demo.
async fn watch(
    args: &Args,
    fleet: &mut Fleet,
    view: &mut View,
    traffic: &Traffic,
    ending: &mut Ending,
) -> Result<()> {
    let started = Instant::now();
    let mut table = Table::new(std::io::stdout().is_terminal());
    let mut seconds = interval(Duration::from_secs(1));
    let over = async {
        match args.duration {
            Some(duration) => sleep_until(started + duration).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(over);
    loop {
        tokio::select! {
            _ = seconds.tick() => {
                view.refresh().await;
                table.show(&Content {
                    elapsed: started.elapsed(),
                    rows: &view.rows(),
                    ended: &fleet.ended(),
                    tally: &traffic.tally(),
                    error: view.error.as_deref(),
                });
                fleet.check_nlb()?;
            }
            () = &mut over => return Ok(()),
            () = ending.asked() => return Ok(()),
        }
    }
}

/// Ctrl-C and SIGTERM.
struct Ending {
    interrupt: Signal,
    terminate: Signal,
}

impl Ending {
    fn new() -> Result<Ending> {
        Ok(Ending {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn duration(text: &str) -> Result<Duration> {
    let digits = text.trim_end_matches(char::is_alphabetic);
    let seconds_per_unit = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => bail!("write a number and a unit, such as 10s, 2m or 1h"),
    };
    let number: u32 = digits.parse().context("write a whole number before the unit, such as 10s")?;
    Ok(Duration::from_secs(u64::from(number) * seconds_per_unit))
}
