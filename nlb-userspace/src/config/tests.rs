//! The combination of flags, variables and file.

use std::time::Duration;

use clap::Parser;

use super::*;
use crate::model::ForwardMode;
use crate::model::settings::LeaseConfig;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

fn flags(line: &str) -> Result<Options, clap::Error> {
    Line::try_parse_from(["nlb"].into_iter().chain(line.split_whitespace())).map(|line| line.options)
}

fn complete(line: &str) -> anyhow::Result<Config> {
    let options = flags(line)?;
    let file = options.file()?;
    options.or(file).check()
}

#[test]
fn an_interface_is_all_it_takes() {
    let config = complete("--iface eth0").unwrap();
    assert_eq!(config.interfaces, ["eth0"]);
    assert_eq!(config.grpc, "127.0.0.1:50051".parse().unwrap());
    assert_eq!(config.snat_ports, 1024..=32_767);
    assert_eq!(config.gue_port, 6080);
    assert_eq!(config.ipip_sources, OuterSources::default());
    assert_eq!(config.registry.lease, LeaseConfig::default());
    assert_eq!(config.registry.promotion, crate::model::settings::PromotionConfig::default());
    assert_eq!(config.registry.resets, crate::model::settings::OutlierConfig::default());
    assert_eq!(config.registry.forward_mode, ForwardMode::Nat);
    assert!(config.registry.fail_open && !config.registry.accept_empty_ids);
    assert!(complete("").unwrap_err().to_string().contains("--iface"));
}

#[test]
fn lists_are_repeated_or_separated_by_commas() {
    let line = "--iface a,b --iface c --vip 192.0.2.1,198.51.100.0/24 --ipip-sources 10.7.0.0/16,fd07::/64";
    let config = complete(line).unwrap();
    assert_eq!(config.interfaces, ["a", "b", "c"]);
    assert_eq!(config.registry.vips.to_string(), "192.0.2.1, 198.51.100.0/24");
    assert!(config.ipip_sources.nets().map(|net| net.to_string()).eq(["10.7.0.0/16", "fd07::/64"]));
}

#[test]
fn flags_come_before_the_file_and_the_file_before_defaults() {
    let file: Options = toml::from_str(
        "iface = ['eth1']\ngrpc = '10.0.0.1:1'\nsnat_ports = '2000-3000'\ngue_port = 6081\nipip_sources = ['10.7.0.0/16']\nxdp_mode = 'generic'\n\
         heartbeat_interval = '2s'\nforward_mode = 'dsr-l2'\naccept_mac = ['eth0=0:0:5e:0:1:33', 'eth0=any']\nvip = ['192.0.2.1']\nfail_open = false",
    )
    .unwrap();
    let config = flags("--iface eth0 --xdp-mode native --fail-open").unwrap().or(file).check().unwrap();
    assert_eq!(config.interfaces, ["eth0"]);
    assert_eq!(config.xdp_mode, XdpMode::Native);
    assert!(config.registry.fail_open);
    assert_eq!(config.grpc, "10.0.0.1:1".parse().unwrap());
    assert_eq!(config.snat_ports, 2000..=3000);
    assert_eq!(config.gue_port, 6081);
    let accepted: Vec<String> = config.accept_mac.iter().map(ToString::to_string).collect();
    assert_eq!(accepted, ["eth0=00:00:5e:00:01:33", "eth0=any"]);
    assert!(config.ipip_sources.nets().map(|net| net.to_string()).eq(["10.7.0.0/16"]));
    assert_eq!(config.registry.lease.interval, Duration::from_secs(2));
    assert_eq!(config.registry.forward_mode, ForwardMode::DsrL2);
    assert_eq!(config.registry.drain_timeout, Duration::from_secs(30));
}

#[test]
fn every_flag_has_its_variable() {
    use clap::CommandFactory;
    for argument in Line::command().get_arguments().filter(|argument| argument.get_id() != "help") {
        let flag = argument.get_long().expect("every setting has a flag");
        let variable = argument.get_env().expect("every setting has a variable").to_str().unwrap();
        assert_eq!(variable, format!("NLB_{}", flag.to_uppercase().replace('-', "_")));
    }
}

#[test]
fn a_mistyped_key_in_the_file_is_an_error() {
    let error = toml::from_str::<Options>("ifaces = ['eth0']").unwrap_err().to_string();
    assert!(error.contains("ifaces"), "{error}");
}

#[test]
fn nonsense_is_refused_with_the_flag_and_the_reason() {
    for (line, reason) in [
        ("--iface way-too-long-a-name", "--iface"),
        ("--iface a/b", "--iface"),
        ("--iface a --vip 192.0.2.1/24", "bits beyond its prefix"),
        ("--iface a --vip example.com", "neither an address nor a CIDR"),
        ("--iface a --vip 127.0.0.1", "loopback"),
        ("--iface a --snat-ports 0-5", "not a range of ports"),
        ("--iface a --snat-ports 5-4", "not a range of ports"),
        ("--iface a --gue-port 0", "--gue-port"),
        ("--iface a --gue-port 65536", "--gue-port"),
        ("--iface a --accept-mac 00:00:5e:00:01:33", "is not of the form"),
        ("--iface a --accept-mac a=00:00:5e:00:01", "is not of the form"),
        ("--iface a --accept-mac a=00:00:5e:00:01:33:1", "is not of the form"),
        ("--iface a --accept-mac a=00:00:5e:00:01:+3", "is not of the form"),
        ("--iface a --accept-mac a=all", "is not of the form"),
        ("--iface a --accept-mac a=01:00:5e:00:01:33", "multicast"),
        ("--iface a --accept-mac a=ff:ff:ff:ff:ff:ff", "broadcast"),
        ("--iface a --accept-mac a=0:0:0:0:0:0", "of no host"),
        ("--iface a --accept-mac b=any", "--iface does not name b"),
        ("--iface a --ipip-sources 10.7.0.1/16", "bits beyond its prefix"),
        ("--iface a --ipip-sources 10.7.0.1", "--ipip-sources"),
        ("--iface a --vip 10.7.3.1 --ipip-sources 10.7.0.0/16", "--ipip-sources"),
        ("--iface a --heartbeat-interval 0s", "not a length of time"),
        ("--iface a --heartbeat-interval 10", "not a length of time"),
        ("--iface a --missed-heartbeats 0", "--missed-heartbeats"),
        ("--iface a --evict-after 30s", "--evict-after"),
        ("--iface a --promotion-step 0s", "not a length of time"),
        ("--iface a --promotion-max-error-percent 101", "--promotion-max-error-percent"),
        ("--iface a --max-reset-percent 101", "--max-reset-percent"),
        ("--iface a --reset-back-off 0s", "not a length of time"),
        ("--iface a --max-backends 65536", "--max-backends"),
        ("--iface a --max-pools 0", "--max-pools"),
        ("--iface a --max-flows 1", "--max-flows"),
        ("--iface a --metrics-history-bytes 1000", "--metrics-history-bytes"),
        ("--iface a --metrics-history-bytes 1000000000000", "--metrics-history-bytes"),
        ("--iface a --max-routes 0", "--max-routes"),
        ("--iface a --max-routes 1000000000000", "--max-routes"),
        ("--iface a --max-modules 0", "--max-modules"),
        ("--iface a --max-modules 65537", "--max-modules"),
        ("--iface a --max-source-prefixes 4000000000", "--max-source-prefixes"),
        ("--iface a --xdp-mode fast", "--xdp-mode"),
        ("--iface a --config /nowhere/nlb.toml", "/nowhere/nlb.toml"),
    ] {
        let error = format!("{:#}", complete(line).unwrap_err());
        assert!(error.contains(reason), "{line}: {error}");
    }
}
