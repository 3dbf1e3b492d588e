//! The programs of the demo: one NLB and three modules of two versions, in a lab.

use std::collections::BTreeMap;
use std::env;
use std::net::SocketAddr;
use std::sync::Arc;

use anstream::adapter::strip_str;
use anyhow::{Result, bail};
use nlb_testkit::lab::{DefaultRoute, Lab, VIP4, VIP6};
use nlb_testkit::process::Process;
use nlb_testkit::programs;

/// The name, version and weight of each module.
const MODULES: [(&str, &str, &str); 3] =
    [("echo-1", "v1", "100"), ("echo-2", "v1", "100"), ("echo-3", "v2", "50")];

pub struct Fleet {
    // Ends the modules before the network is removed.
    pub modules: Vec<(&'static str, Process)>,
    nlb: Process,
    pub lab: Arc<Lab>,
}

impl Fleet {
    pub fn start() -> Result<Fleet> {
        let lab = Lab::two_arm(1, MODULES.len(), DefaultRoute::Nlb)?;
        let nlb = programs::serve(&lab, "eth0,eth1", &[])?;
        let modules = MODULES.iter().zip(&lab.modules).map(|((name, version, weight), host)| {
            let args = ["--version", version, "--weight", weight, "--metadata", "reply_path=nlb"];
            Ok((*name, programs::echo(&lab, host, name, &args)?))
        });
        let modules = modules.collect::<Result<_>>()?;
        Ok(Fleet { modules, nlb, lab: Arc::new(lab) })
    }

    /// Fails if the NLB has ended. Modules may end, because users of the demo stop them.
    pub fn check_nlb(&mut self) -> Result<()> {
        match self.nlb.ended()? {
            Some(status) => bail!("the NLB has ended ({status}); its output:\n{}", self.nlb.output()),
            None => Ok(()),
        }
    }

    /// The modules whose processes have ended, by name: how, and their last line of output.
    pub fn ended(&mut self) -> BTreeMap<&'static str, (String, String)> {
        let modules = self.modules.iter_mut().filter_map(|(name, process)| {
            let how = match process.ended() {
                Ok(status) => status?.to_string(),
                Err(error) => format!("{error:#}"),
            };
            Some((*name, (how, last_line(&process.output()))))
        });
        modules.collect()
    }

    /// The output of the programs, for the message when they fail to start.
    pub fn logs(&self) -> String {
        let mut text = format!("the NLB's output:\n{}", self.nlb.output());
        for (name, process) in &self.modules {
            text += &format!("\n{name}'s output:\n{}", process.output());
        }
        text
    }

    pub fn print_hints(&self, grpc: SocketAddr) -> Result<()> {
        let (first, victim) = &self.modules[0];
        let (drained, leaver) = &self.modules[1];
        let nlb = programs::built("nlb")?;
        let here = env::current_dir().unwrap_or_default();
        let nlb = nlb.strip_prefix(here).unwrap_or(&nlb).display();
        // Processes of the lab belong to root.
        let sudo = if env::var_os("SUDO_USER").is_some() { "sudo " } else { "" };
        // The command's own default.
        let server = if grpc.port() == 50051 { String::new() } else { format!(" --server {grpc}") };
        let lines = [
            (format!("{nlb}{server} weight {first} 10"), "change a weight".to_owned()),
            (format!("{nlb}{server} modules"), "list the modules".to_owned()),
            (format!("{sudo}kill -9 {}", victim.pid()), format!("kill {first}")),
            (format!("{nlb}{server} remove {first}"), format!("remove {first}, once it is dead")),
            (format!("{sudo}kill {}", leaver.pid()), format!("drain {drained}, and end it")),
            (format!("tail {}/*.log", self.lab.files().display()), "show the logs".to_owned()),
        ];
        println!("\nA client sends requests to {VIP4}:80 and [{VIP6}]:80, by TCP and UDP.");
        println!("Meanwhile, from another terminal:");
        for (command, effect) in lines {
            println!("  # {effect}\n  {command}");
        }
        println!();
        Ok(())
    }
}

/// The last line of a log, without its time and colours.
fn last_line(log: &str) -> String {
    let Some(line) = log.lines().rev().find(|line| !line.trim().is_empty()) else { return String::new() };
    let plain = strip_str(line).to_string();
    let without_time = plain.split_once(' ').filter(|(time, _)| time.ends_with('Z')).map(|(_, rest)| rest);
    without_time.unwrap_or(&plain).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::last_line;

    #[test]
    fn the_last_line_is_plain() {
        let log =
            "first\n\x1b[2m2026-11-30T14:00:00.1Z\x1b[0m \x1b[32m INFO\x1b[0m \x1b[2mnlb\x1b[0m: ready\n\n";
        assert_eq!(last_line(log), "INFO nlb: ready");
        assert_eq!(last_line("a panic, with words\n"), "a panic, with words");
        assert_eq!(last_line(""), "");
    }
}
