//! Large transfers with common programs.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nlb_testkit::lab::{Host, Lab, VIP4, VIP6};
use nlb_testkit::netns::output;
use nlb_testkit::process::{MAX_WAIT, Process};

use crate::fleet::{Fleet, Mode, register};

const DOWNLOAD_BYTES: usize = 100 << 20;

pub fn wait_for_port(fleet: &Fleet, server: &mut Process, port: u16) -> Result<()> {
    let module = &fleet.lab.modules[0];
    server.wait_until("it listens", MAX_WAIT, || {
        output(module.netns.command("ss").args(["-tlnH"]))
            .is_ok_and(|ports| ports.contains(&format!(":{port} ")))
    })
}

#[test]
fn a_hundred_megabytes_from_nginx_arrive_whole() -> Result<()> {
    for mode in [Mode::Nat, Mode::DsrIpip, Mode::Gue] {
        let listen = if mode == Mode::Nat { 8080 } else { DOWNLOADS };
        let fleet = Fleet::with_foreign_module(Lab::one_arm(1, 1)?, mode, DOWNLOADS, listen)?;
        let _nginx = serve_downloads(&fleet, listen, DOWNLOAD_BYTES)?;
        download(&fleet, &fleet.lab.clients[0]).with_context(|| format!("{mode:?}"))?;
    }
    Ok(())
}

/// Offloads of virtual interfaces, by ethtool's names. A veth has all of them, so that TCP may leave
/// segmentation and checksums to it and hands over 64 KiB at a time.
const OFFLOADS: [&[&str]; 6] = [
    &["tx", "on", "rx", "on", "tso", "on", "gso", "on", "gro", "on"],
    &["gro", "off"],
    &["tso", "off"],
    &["gso", "off"],
    &["rx", "off"],
    &["tx", "off"],
];

#[test]
fn downloads_from_a_container_arrive_whole_with_any_offloads() -> Result<()> {
    let fleet = Fleet::with_foreign_module(Lab::same_host(1, 2)?, Mode::Nat, DOWNLOADS, 8080)?;
    let _nginx = serve_downloads(&fleet, 8080, 20 << 20)?;
    let Lab { clients, nlb, modules, .. } = &fleet.lab;
    // Each setting adds to those before.
    for features in OFFLOADS {
        for (host, interface) in
            [(&modules[0], "eth0"), (nlb, "veth0"), (nlb, "veth1"), (&modules[1], "eth0")]
        {
            offload(host, interface, features)?;
        }
        for client in [&clients[0], nlb, &modules[1]] {
            download(&fleet, client).with_context(|| format!("{features:?}, from {}", client.v4))?;
        }
    }
    Ok(())
}

#[test]
fn downloads_over_the_link_arrive_whole_with_any_receive_offloads() -> Result<()> {
    let fleet = Fleet::with_foreign_module(Lab::one_arm(1, 1)?, Mode::Nat, DOWNLOADS, 8080)?;
    let _nginx = serve_downloads(&fleet, 8080, 20 << 20)?;
    let Lab { clients, nlb, modules, .. } = &fleet.lab;
    for features in [["gro", "off"], ["gro", "on"], ["rx", "off"]] {
        for host in [&clients[0], &modules[0], nlb] {
            offload(host, "eth0", &features)?;
        }
        download(&fleet, &clients[0]).with_context(|| format!("{features:?}"))?;
    }
    Ok(())
}

pub fn offload(host: &Host, interface: &str, features: &[&str]) -> Result<()> {
    output(host.netns.command("ethtool").args(["-K", interface]).args(features)).map(drop)
}

pub const DOWNLOADS: u16 = 8000;

/// Starts nginx on the first module's host, with a file of so many bytes.
pub fn serve_downloads(fleet: &Fleet, listen: u16, bytes: usize) -> Result<Process> {
    let files = fleet.lab.files();
    let root = files.join("root");
    fs::create_dir_all(&root)?;
    // The data are neither compressible nor constant, so that a lost byte changes the sum.
    let data: Vec<u8> =
        (0..bytes as u64 / 8).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
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
    wait_for_port(fleet, &mut nginx, listen)?;
    Ok(nginx)
}

/// Starts nginx beside the first module, on a host that is prepared for this mode. The first client downloads
/// 20 MiB.
pub fn download_beside(fleet: &Fleet, mode: Mode) -> Result<()> {
    let listen = if mode == Mode::Nat { 8081 } else { DOWNLOADS };
    register(&fleet.lab, 0, "nginx", mode, &[(DOWNLOADS, listen)], &[])?;
    let _nginx = serve_downloads(fleet, listen, 20 << 20)?;
    download(fleet, &fleet.lab.clients[0])
}

/// Downloads the file from both VIPs, and compares sums.
pub fn download(fleet: &Fleet, client: &Host) -> Result<()> {
    let files = fleet.lab.files();
    for host in [VIP4.to_string(), format!("[{VIP6}]")] {
        let fetched = files.join("fetched");
        let url = format!("http://{host}:{DOWNLOADS}/blob");
        let mut curl = client.netns.command("curl");
        output(curl.args(["-sS", "--fail", "--max-time", "600", "-g", "-o"]).arg(&fetched).arg(&url))?;
        ensure!(sha256(&fetched)? == sha256(&files.join("root/blob"))?, "{url}: the downloaded file differs");
    }
    Ok(())
}

fn sha256(file: &std::path::Path) -> Result<String> {
    let sum = output(Command::new("sha256sum").arg(file))?;
    Ok(sum.split(' ').next().context("no sum")?.to_owned())
}

#[test]
fn iperf3_transfers_arrive_both_ways() -> Result<()> {
    let fleet = Fleet::with_foreign_module(Lab::one_arm(1, 1)?, Mode::Nat, IPERF3, 8080)?;
    let _server = serve_iperf3(&fleet)?;
    transfer(&fleet.lab.clients[0])
}

#[test]
fn iperf3_transfers_between_all_hosts_and_a_container() -> Result<()> {
    let fleet = Fleet::with_foreign_module(Lab::same_host(1, 2)?, Mode::Nat, IPERF3, 8080)?;
    let _server = serve_iperf3(&fleet)?;
    for client in [&fleet.lab.clients[0], &fleet.lab.nlb, &fleet.lab.modules[1]] {
        transfer(client)?;
    }
    Ok(())
}

const IPERF3: u16 = 5201;

/// On the first module's host.
fn serve_iperf3(fleet: &Fleet) -> Result<Process> {
    let mut command = fleet.lab.modules[0].netns.command("iperf3");
    command.args(["--server", "--port", "8080"]);
    let mut server = fleet.lab.start("iperf3", &mut command)?;
    wait_for_port(fleet, &mut server, 8080)?;
    Ok(server)
}

/// TCP both ways and UDP.
fn transfer(client: &Host) -> Result<()> {
    const WAYS: [(&[&str], f64); 3] = [
        (&["--bytes", "100M"], 50e6),
        (&["--bytes", "100M", "--reverse"], 50e6),
        (&["--udp", "--bitrate", "20M", "--length", "1200", "--bytes", "2M"], 1e6),
    ];
    for vip in [VIP4.to_string(), VIP6.to_string()] {
        for (way, at_least) in WAYS {
            let mut iperf3 = client.netns.command("iperf3");
            iperf3.args(["--client", &vip, "--port", &IPERF3.to_string(), "--json"]).args(way);
            // The server may still be busy with the end of the last transfer.
            let report = loop {
                let report: serde_json::Value = serde_json::from_str(&output(&mut iperf3)?)?;
                if report["error"].as_str().is_none_or(|error| !error.contains("server is busy")) {
                    break report;
                }
            };
            let received =
                report["end"]["sum_received"]["bytes"].as_f64().or(report["end"]["sum"]["bytes"].as_f64());
            ensure!(received.is_some_and(|bytes| bytes > at_least), "{vip} {way:?}: {report}");
        }
    }
    Ok(())
}
