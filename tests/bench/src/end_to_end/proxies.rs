//! The other balancers, configured for speed: room for all connections, both CPUs, no logs.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use nlb_testkit::lab::Lab;
use nlb_testkit::netns::output;
use nlb_testkit::process::Process;

use super::backend::wait_until_it_listens;

/// DNAT by the kernel: the rule selects a backend for a connection's first packet, and connection tracking
/// stores it.
pub fn nftables(lab: &Lab, vip: SocketAddr, backends: &[SocketAddr]) -> Result<()> {
    let (count, port) = (backends.len(), backends[0].port());
    let map: Vec<_> =
        backends.iter().enumerate().map(|(i, backend)| format!("{i} : {}", backend.ip())).collect();
    let to = format!("dnat to numgen inc mod {count} map {{ {} }} : {port}", map.join(", "));
    let rules = format!(
        "table ip balancer {{\n  \
           chain prerouting {{\n    \
             type nat hook prerouting priority dstnat\n    \
             ip daddr {0} tcp dport {1} {to}\n    \
             ip daddr {0} udp dport {1} {to}\n  \
           }}\n\
         }}\n",
        vip.ip(),
        vip.port()
    );
    let file = write(lab, "rules.nft", &rules)?;
    output(lab.nlb.netns.command("nft").arg("-f").arg(file)).map(drop)
}

pub fn haproxy(lab: &Lab, vip: SocketAddr, backends: &[SocketAddr]) -> Result<Process> {
    let servers: String =
        backends.iter().enumerate().map(|(i, backend)| format!("  server backend{i} {backend}\n")).collect();
    let configuration = format!(
        "global\n  nbthread 2\n  maxconn 4000\n\
         defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n  \
           option splice-auto\n  option dontlog-normal\n\
         listen balancer\n  bind {vip} shards by-thread\n  balance roundrobin\n{servers}"
    );
    let file = write(lab, "haproxy.cfg", &configuration)?;
    let mut command = lab.nlb.netns.command("haproxy");
    command.arg("-db").arg("-f").arg(file);
    start(lab, "haproxy", &mut command, vip)
}

pub fn nginx(lab: &Lab, vip: SocketAddr, backends: &[SocketAddr]) -> Result<Process> {
    let servers: String = backends.iter().map(|backend| format!("server {backend}; ")).collect();
    let files = lab.files();
    let files = files.display();
    let configuration = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n\
         daemon off; pid {files}/nginx.pid; error_log {files}/nginx-error.log crit;\n\
         worker_processes 2; worker_rlimit_nofile 16384;\n\
         events {{ worker_connections 8000; }}\n\
         stream {{\n\
           upstream backends {{ {servers}}}\n\
           server {{ listen {vip} reuseport backlog=4096; proxy_pass backends; proxy_buffer_size 64k; }}\n\
         }}\n"
    );
    let file = write(lab, "nginx.conf", &configuration)?;
    let mut command = lab.nlb.netns.command("nginx");
    command.arg("-c").arg(file);
    start(lab, "nginx", &mut command, vip)
}

fn write(lab: &Lab, name: &str, text: &str) -> Result<PathBuf> {
    let file = lab.files().join(name);
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    Ok(file)
}

fn start(lab: &Lab, name: &str, command: &mut Command, vip: SocketAddr) -> Result<Process> {
    let mut process = lab.start(name, command)?;
    wait_until_it_listens(&mut process, &lab.nlb.netns, vip)?;
    Ok(process)
}
