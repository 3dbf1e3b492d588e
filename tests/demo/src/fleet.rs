//! The programs of the demo: one NLB and three modules of two versions, in a lab.

use std::env;
use std::net::SocketAddr;
use std::sync::Arc;

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

    /// Whether the module's process runs.
    pub fn runs(&mut self, name: &str) -> bool {
        let module = self.modules.iter_mut().find(|(module, _)| *module == name);
        module.is_some_and(|(_, process)| matches!(process.ended(), Ok(None)))
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
        let lines = [
            (format!("{nlb} --server http://{grpc} weight {first} 10"), "change a weight".to_owned()),
            (format!("{nlb} --server http://{grpc} modules"), "list the modules".to_owned()),
            (format!("{sudo}kill -9 {}", victim.pid()), format!("kill {first}")),
            (format!("{sudo}kill {}", leaver.pid()), format!("drain {drained}, and end it")),
            (format!("tail {}/*.log", self.lab.files().display()), "show the logs".to_owned()),
        ];
        println!("\nA client sends requests to {VIP4}:80 and [{VIP6}]:80 by TCP and UDP, continuously.");
        println!("Meanwhile, from another terminal:");
        let width = lines.iter().map(|(command, _)| command.len()).max().unwrap_or_default();
        for (command, effect) in lines {
            println!("  {command:<width$}  {effect}");
        }
        println!();
        Ok(())
    }
}
