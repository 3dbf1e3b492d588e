//! Programs that people use, and a lot of data.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nlb_tests::lab::{Lab, VIP4, VIP6};
use nlb_tests::netns::output;
use nlb_tests::process::Process;

use crate::fleet::{Fleet, Mode};

const DOWNLOAD_BYTES: usize = 100 << 20;

fn wait_for_port(fleet: &Fleet, server: &mut Process, port: u16) -> Result<()> {
    let module = &fleet.lab.modules[0];
    server.wait_until("it listens", std::time::Duration::from_secs(10), || {
        output(module.netns.command("ss").args(["-tlnH"]))
            .is_ok_and(|ports| ports.contains(&format!(":{port} ")))
    })
}

#[test]
fn a_hundred_megabytes_from_nginx_arrive_whole() -> Result<()> {
    for mode in [Mode::Nat, Mode::DsrIpip] {
        let listen = if mode == Mode::Nat { 8080 } else { 8000 };
        let fleet = Fleet::with_foreign_module(Lab::one_arm(1, 1)?, mode, 8000, listen)?;
        let files = fleet.lab.files();
        let root = files.join("root");
        fs::create_dir_all(&root)?;
        // Not compressible and not constant: a byte that is lost or doubled changes the sum.
        let data: Vec<u8> = (0..DOWNLOAD_BYTES as u64 / 8)
            .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
            .collect();
        fs::write(root.join("blob"), &data)?;
        let configuration = format!(
            "daemon off; pid {0}/nginx.pid; error_log {0}/nginx-error.log; user root;\n\
             events {{}}\n\
             http {{ access_log off; client_body_temp_path {0}; proxy_temp_path {0}; fastcgi_temp_path {0};\n\
             uwsgi_temp_path {0}; scgi_temp_path {0};\n\
             server {{ listen {listen}; listen [::]:{listen}; root {1}; }} }}\n",
            files.display(),
            root.display()
        );
        let configuration_file = files.join("nginx.conf");
        fs::write(&configuration_file, configuration)?;
        let mut command = fleet.lab.modules[0].netns.command("nginx");
        command.arg("-c").arg(&configuration_file);
        let mut nginx = fleet.lab.start("nginx", &mut command)?;
        wait_for_port(&fleet, &mut nginx, listen)?;
        for host in [VIP4.to_string(), format!("[{VIP6}]")] {
            let fetched = files.join("fetched");
            let url = format!("http://{host}:8000/blob");
            let mut curl = fleet.lab.clients[0].netns.command("curl");
            output(curl.args(["-sS", "--fail", "--max-time", "120", "-g", "-o"]).arg(&fetched).arg(&url))?;
            ensure!(
                sha256(&fetched)? == sha256(&root.join("blob"))?,
                "{mode:?} {url}: what arrived is not what was sent"
            );
        }
    }
    Ok(())
}

fn sha256(file: &std::path::Path) -> Result<String> {
    let sum = output(Command::new("sha256sum").arg(file))?;
    Ok(sum.split(' ').next().context("no sum")?.to_owned())
}

#[test]
fn iperf3_both_ways() -> Result<()> {
    let fleet = Fleet::with_foreign_module(Lab::one_arm(1, 1)?, Mode::Nat, 5201, 8080)?;
    let mut command = fleet.lab.modules[0].netns.command("iperf3");
    command.args(["--server", "--port", "8080"]);
    let mut server = fleet.lab.start("iperf3", &mut command)?;
    wait_for_port(&fleet, &mut server, 8080)?;
    for (vip, extra) in [
        (VIP4.to_string(), &[][..]),
        (VIP4.to_string(), &["--reverse"]),
        (VIP6.to_string(), &[]),
        (VIP6.to_string(), &["--reverse"]),
        (VIP4.to_string(), &["--udp", "--bitrate", "20M", "--length", "1200"]),
    ] {
        let mut client = fleet.lab.clients[0].netns.command("iperf3");
        client.args(["--client", &vip, "--port", "5201", "--time", "2", "--json"]).args(extra);
        let report: serde_json::Value = serde_json::from_str(&output(&mut client)?)?;
        let received =
            report["end"]["sum_received"]["bytes"].as_f64().or(report["end"]["sum"]["bytes"].as_f64());
        ensure!(received.is_some_and(|bytes| bytes > 1e6), "{vip} {extra:?}: {report}");
    }
    Ok(())
}
