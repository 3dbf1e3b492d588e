//! The real program in the real kernel, run on single packets by BPF_PROG_TEST_RUN.
//!
//! A rig has a namespace with one interface towards the clients, whose routes and neighbours the program
//! looks up for replies. Backends get into the maps by the daemon's own compiler and map store.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::maps::{HashMap, MapData, RingBuf};
use aya::programs::{TestRun, TestRunOptions, TestRunResult, Xdp};
use nlb::compile::{MapImage, compile};
use nlb::config::{Flows, OuterSources};
use nlb::datapath::counters::Collector;
use nlb::datapath::inject;
use nlb::datapath::loader::{self, Datapath, LoadConfig};
use nlb::datapath::maps::bpf::{self, BpfMaps, FibGeneration, HostTraffic, LocalLinks, Readings};
use nlb::datapath::maps::macs::MacTable;
use nlb::datapath::maps::upcalls::{self, Upcalls};
use nlb::datapath::punted;
use nlb::model::next_hop::{Hop, Hops};
use nlb::model::settings::TableSizes;
use nlb::model::snat::SnatAddresses;
use nlb::model::traffic::Traffic;
use nlb::model::upcall::Question;
use nlb::model::{
    DataAddresses, Desired, Destination, ForwardMode, Health, Module, ModuleType, Protocol, Route, Routes,
    Snat, Targets, Texts,
};
use nlb::reconcile::change::MapStore;
use nlb::reconcile::plan::plan;
use nlb_common::abi::{AcceptedMac, FragmentEntry, FragmentKey, LOOPBACK, NextHop, Punted, local_link};
use nlb_common::flow::IdleTimes;
use nlb_common::net;
use nlb_common::verdict::{
    COUNTERS, FULL_COUNTER, SEEN_COUNTER, UNRECORDED_COUNTER, UPCALL_LOST_COUNTER, exit_name,
};

use crate::cpu;
use crate::netns::Namespace;
use crate::packet::{ACK, Mac, Outer, OuterUdp, Packet, SYN, Transport, UdpChecksum};

pub use nlb_common::protocol::xdp::{
    DROP as XDP_DROP, PASS as XDP_PASS, REDIRECT as XDP_REDIRECT, TX as XDP_TX,
};

/// The client's MAC address.
pub const CLIENT_MAC: Mac = [2, 0, 0, 0, 0, 0xc1];
/// The MAC address of the NLB's interface towards clients, which test packets are addressed to.
pub const OUR_MAC: Mac = [2, 0, 0, 0, 0, 0x01];
/// The backends' MAC address. Frames are not really sent, so no such host exists.
pub const BACKEND_MAC: Mac = [2, 0, 0, 0, 0, 0xb1];
pub const OUR_BACK_MAC: Mac = [2, 0, 0, 0, 0, 0x02];
pub const BACK_IFINDEX: u32 = 77;
pub const BACK_MTU: u16 = 1500;
pub const GUE_PORT: u16 = 6080;
/// The most changes that are applied without a round of work.
const CHANGES_A_ROUND: usize = 64;

/// The addresses of one family.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    pub client: IpAddr,
    pub vip: IpAddr,
    pub vip2: IpAddr,
    pub backend: IpAddr,
    /// The NLB's address towards the backends.
    pub source: IpAddr,
    /// An address that is neither a client's nor a VIP nor the NLB's.
    pub stranger: IpAddr,
}

pub fn families() -> [Family; 2] {
    let family = |client: &str, vip: &str, vip2: &str, backend: &str, source: &str, stranger: &str| {
        let ip = |text: &str| text.parse().expect("an address");
        Family {
            client: ip(client),
            vip: ip(vip),
            vip2: ip(vip2),
            backend: ip(backend),
            source: ip(source),
            stranger: ip(stranger),
        }
    };
    [
        family("198.51.100.7", "192.0.2.10", "192.0.2.11", "10.0.0.2", "10.0.0.1", "203.0.113.9"),
        family("2001:db8:c::7", "2001:db8::10", "2001:db8::11", "fd00::2", "fd00::1", "2001:db8:5::9"),
    ]
}

impl Family {
    /// A SYN from the client to the VIP's port 80.
    pub fn syn(&self) -> Packet {
        Packet {
            dst_mac: OUR_MAC,
            src_mac: CLIENT_MAC,
            tags: Vec::new(),
            src: self.client,
            dst: self.vip,
            ttl: 64,
            tos: 0,
            options: Vec::new(),
            id: 0x4242,
            fragment: (0, false),
            extensions: Vec::new(),
            l4: Transport::Tcp { flags: SYN, seq: 1000 },
            sport: 40_000,
            dport: 80,
            payload: Vec::new(),
            timestamp: None,
            padding: Vec::new(),
            outer: None,
        }
    }

    pub fn ack(&self) -> Packet {
        self.syn().with(|p| {
            p.l4 = Transport::Tcp { flags: ACK, seq: 1001 };
            p.payload = b"hello".to_vec();
        })
    }

    pub fn udp(&self) -> Packet {
        self.syn().with(|p| {
            p.l4 = Transport::Udp { checksum: UdpChecksum::Computed };
            p.dport = 53;
            p.payload = b"question".to_vec();
        })
    }

    /// `packet` as NAT sends it to the backend, with `port` as the translated port.
    pub fn translated(&self, packet: &Packet, port: u16) -> Packet {
        packet.with(|p| {
            (p.dst_mac, p.src_mac) = (BACKEND_MAC, OUR_BACK_MAC);
            (p.src, p.dst) = (self.source, self.backend);
            p.sport = port;
            p.dport = 8080;
            p.ttl -= 1;
        })
    }

    /// The backend's answer to a request.
    pub fn answer(&self, request: &Packet, l4: Transport) -> Packet {
        request.with(|p| {
            (p.dst_mac, p.src_mac) = (OUR_BACK_MAC, BACKEND_MAC);
            (p.src, p.dst) = (request.dst, request.src);
            (p.sport, p.dport) = (request.dport, request.sport);
            (p.ttl, p.l4, p.payload) = (60, l4, b"answer".to_vec());
        })
    }
}

/// The result of a packet.
#[derive(Debug)]
pub struct Outcome {
    pub action: u32,
    pub frame: Vec<u8>,
    /// The growth of each counter that changed.
    pub counted: BTreeMap<String, u64>,
}

pub struct Rig {
    number: u32,
    namespace: Namespace,
    datapath: Datapath,
    maps: BpfMaps,
    collector: Collector,
    upcalls: Upcalls,
    punted: RingBuf<MapData>,
    macs: MacTable,
    accepted: BTreeSet<AcceptedMac>,
    fragments: HashMap<MapData, FragmentKey, FragmentEntry>,
    image: MapImage,
    /// What routes for every port leave to the host.
    pub host: HostTraffic,
    pub desired: Desired,
    pub hops: Hops,
}

pub fn load_config() -> LoadConfig {
    let seconds = Duration::from_secs;
    LoadConfig {
        flows: Flows {
            max: 1 << 16,
            opening: seconds(60),
            established: seconds(7200),
            closing: seconds(10),
            udp: seconds(120),
            time_wait: seconds(60),
        },
        limits: TableSizes {
            backends: 1000,
            services: 100,
            pools: 100,
            addresses: 100,
            rate_limits: 100,
            source_prefixes: 1000,
            counted_routes: 100,
        },
        snat_ports: 1024..=32_767,
        snat_addresses: SnatAddresses::default(),
        gue_port: GUE_PORT,
        ipip_sources: OuterSources::default(),
        use_tx: true,
    }
}

impl Rig {
    /// A module "m1" in `mode` that serves TCP 80 and UDP 53 of every VIP, both on port 8080 with NAT.
    pub fn new(mode: ForwardMode) -> Result<Rig> {
        Rig::sized(mode, &load_config())
    }

    pub fn sized(mode: ForwardMode, load_config: &LoadConfig) -> Result<Rig> {
        Rig::with(mode, load_config, false)
    }

    /// Also loads the programs of the TC ingress hook, which the kernel verifies for some seconds.
    pub fn with_tc_ingress(mode: ForwardMode) -> Result<Rig> {
        Rig::with(mode, &load_config(), true)
    }

    fn with(mode: ForwardMode, load_config: &LoadConfig, tc_ingress: bool) -> Result<Rig> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let namespace = Namespace::create(format!("nlb-{}-{number}-rig", std::process::id()))?;
        namespace.ip(&[
            "link",
            "add",
            "up0",
            "address",
            "02:00:00:00:00:01",
            "type",
            "veth",
            "peer",
            "name",
            "up1",
        ])?;
        namespace.ip(&["link", "set", "up0", "up"])?;
        namespace.ip(&["link", "set", "up1", "up"])?;
        for (family, bits) in families().iter().zip(["24", "64"]) {
            let ours = if bits == "24" { "198.51.100.1" } else { "2001:db8:c::1" };
            namespace.ip(&["addr", "add", &format!("{ours}/{bits}"), "dev", "up0"])?;
            let client = family.client.to_string();
            namespace.ip(&["neigh", "add", &client, "lladdr", "02:00:00:00:00:c1", "dev", "up0"])?;
        }
        namespace.run(loader::prepare_host)??;

        let mut datapath = Datapath::load(load_config)?;
        if tc_ingress {
            datapath.load_tc_ingress()?;
        }
        let capacities = bpf::capacities(&mut datapath.bpf)?;
        let flows = bpf::flows(&mut datapath.bpf)?;
        let maps = BpfMaps::take(&mut datapath.bpf, flows.clone(), capacities.clone())?;
        let readings = Readings::take(&mut datapath.bpf, flows, capacities)?;
        let upcalls = Upcalls::take(&mut datapath.bpf)?;
        let punted = bpf::punted(&mut datapath.bpf)?;
        let fragments = datapath.bpf.take_map("FRAGMENTS").context("no map FRAGMENTS")?.try_into()?;
        let macs = MacTable::take(&mut datapath.bpf)?;
        let collector = Collector::new(readings, load_config.idle_times(datapath.clock()));
        let image = MapImage::empty(load_config.limits).with_snat_addresses(&load_config.snat_addresses);
        let host = HostTraffic::take(&mut datapath.bpf)?;
        let mut rig = Rig {
            number,
            namespace,
            datapath,
            maps,
            collector,
            upcalls,
            punted,
            macs,
            accepted: [OUR_MAC, OUR_BACK_MAC]
                .map(|mac| AcceptedMac::new(LOOPBACK, net::Mac::new(mac)))
                .into(),
            fragments,
            image,
            host,
            desired: Desired { fail_open: true, ..Desired::default() },
            hops: Hops::new(),
        };
        for family in families() {
            rig.desired.vips.extend([family.vip, family.vip2]);
            rig.know(family.backend, family.source);
        }
        rig.set_macs()?;
        rig.desired.modules.insert("m1".to_owned(), module(mode, 2).into());
        rig.apply()?;
        Ok(rig)
    }

    /// Sets the next hop of an address.
    pub fn know(&mut self, addr: IpAddr, source: IpAddr) {
        let hop = NextHop::new(net::Mac::new(BACKEND_MAC), net::Mac::new(OUR_BACK_MAC), BACK_IFINDEX);
        let link_prefix = if addr.is_ipv4() { 24 } else { 64 };
        self.hops.insert(addr, Hop { hop, source, mtu: BACK_MTU, link_prefix, local: false });
    }

    /// Moves the test's thread into the rig's namespace. A thread for each packet would take too long.
    pub fn enter(&self) -> Result<()> {
        thread_local! {
            static INSIDE: Cell<u32> = const { Cell::new(u32::MAX) };
        }
        if INSIDE.get() != self.number {
            self.namespace.enter()?;
            INSIDE.set(self.number);
        }
        Ok(())
    }

    /// Applies `desired` and `hops` to the maps.
    pub fn apply(&mut self) -> Result<()> {
        let image = compile(&self.desired, &self.hops, &self.image)?;
        for change in plan(&self.image.rows, &image.rows) {
            self.maps.apply(&change)?;
        }
        self.image = image;
        Ok(())
    }

    /// Applies them while another thread repeats `work`, with at least one round of work for
    /// [`CHANGES_A_ROUND`] changes.
    pub fn apply_under(&mut self, mut work: impl FnMut(&Xdp) -> Result<()> + Send) -> Result<()> {
        self.enter()?;
        let image = compile(&self.desired, &self.hops, &self.image)?;
        let (program, maps): (&Xdp, _) = (self.datapath.balancer()?, &mut self.maps);
        let (done, rounds) = (AtomicBool::new(false), AtomicU32::new(0));
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    work(program)?;
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
                anyhow::Ok(())
            });
            let changes = plan(&self.image.rows, &image.rows);
            let applied = changes.chunks(CHANGES_A_ROUND).try_for_each(|changes| {
                let before = rounds.load(Ordering::Relaxed);
                while rounds.load(Ordering::Relaxed) == before && !worker.is_finished() {
                    std::thread::yield_now();
                }
                changes.iter().try_for_each(|change| maps.apply(change))
            });
            done.store(true, Ordering::Relaxed);
            worker.join().expect("the work does not panic")?;
            anyhow::Ok(applied?)
        })?;
        self.image = image;
        Ok(())
    }

    pub fn module(&mut self, name: &str) -> &mut Module {
        Arc::make_mut(self.desired.modules.get_mut(name).expect("a module of the rig"))
    }

    pub fn route(&mut self, module: &str, id: &str) -> &mut Route {
        Arc::make_mut(self.module(module).routes.get_mut(id).expect("a route of the rig"))
    }

    pub fn image(&self) -> &MapImage {
        &self.image
    }

    pub fn readings(&self) -> &Readings {
        self.collector.readings()
    }

    /// The daemon's counts now, or so many ticks of the clock later.
    pub fn traffic(&mut self, later: u16) -> Result<Traffic> {
        let now = self.datapath.now()?.wrapping_add(later);
        self.collector.collect(&self.image, now, || true)
    }

    /// The program's clock in jiffies.
    pub fn jiffies(&self) -> Result<u32> {
        self.datapath.jiffies()
    }

    /// Waits until that clock has advanced by so many ticks.
    pub fn wait_ticks(&self, ticks: u16) -> Result<()> {
        let first = self.datapath.now()?;
        while self.datapath.now()?.wrapping_sub(first) < ticks {
            sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// The program's clock in ticks.
    pub fn ticks(&self) -> Result<u16> {
        self.datapath.now()
    }

    /// The length of a tick.
    pub fn tick(&self) -> Duration {
        self.datapath.clock().tick()
    }

    /// The time between two readings of the clock in jiffies.
    pub fn between(&self, first: u32, last: u32) -> Duration {
        self.datapath.clock().duration(last.wrapping_sub(first))
    }

    pub fn idle_times(&self, load_config: &LoadConfig) -> IdleTimes {
        load_config.idle_times(self.datapath.clock())
    }

    /// Takes the upcalls that the program has raised.
    pub fn questions(&mut self) -> Vec<Question> {
        let mut questions = Vec::new();
        while let Some(record) = self.upcalls.questions.next() {
            questions.push(upcalls::parse(&record).expect("a record of the program's"));
        }
        questions
    }

    /// Takes the frames that the program has punted.
    pub fn punted(&mut self) -> Vec<Vec<u8>> {
        self.punted_with_heads().into_iter().map(|(_, frame)| frame).collect()
    }

    /// Takes the frames that the program has punted, with what it says about them.
    pub fn punted_with_heads(&mut self) -> Vec<(Punted, Vec<u8>)> {
        let mut frames = Vec::new();
        while let Some(record) = self.punted.next() {
            let punted = punted::Packet::parse(&record).expect("a record of the program's");
            frames.push((punted.head, punted.frame));
        }
        frames
    }

    /// Adds a VLAN device of the host on the interface that packets come in by.
    pub fn end_vlan(&mut self, id: u16) -> Result<()> {
        LocalLinks::take(&mut self.datapath.bpf)?.insert(local_link(LOOPBACK, id))
    }

    /// Has an interface accept a destination MAC address. Loopback, where frames of [`run`](Self::run) come
    /// in, accepts [`OUR_MAC`] and [`OUR_BACK_MAC`].
    pub fn accept(&mut self, accepted: AcceptedMac) -> Result<()> {
        self.accepted.insert(accepted);
        self.set_macs()
    }

    /// Has the only interface accept its own MAC address and no other.
    pub fn accept_only(&mut self, accepted: AcceptedMac) -> Result<()> {
        self.accepted = [accepted].into();
        self.set_macs()
    }

    /// An interface's own address is one of those that it accepts.
    fn set_macs(&mut self) -> Result<()> {
        let own: Vec<_> = self.accepted.iter().map(|accepted| (accepted.ifindex, accepted.mac())).collect();
        self.macs.set(&own, self.accepted.clone())
    }

    /// The counter of changes of the kernel's FIB, which ends cached next hops. It can be taken once.
    pub fn fib_generation(&mut self) -> Result<FibGeneration> {
        FibGeneration::take(&mut self.datapath.bpf)
    }

    /// Empties the flow table.
    pub fn forget_flows(&self) {
        for entry in self.readings().flows.all().iter().flat_map(|bucket| &bucket.entries) {
            if let Some((_, state)) = entry.snapshot() {
                entry.remove(state);
            }
        }
    }

    /// Empties the flow table behind the back of who counts its flows. The scans that follow notice it.
    pub fn lose_flows(&mut self) -> Result<()> {
        self.forget_flows();
        for _ in 0..5 {
            self.traffic(0)?;
        }
        assert!(self.counted().iter().all(|flows| *flows == 0), "{:?} flows count", self.counted());
        Ok(())
    }

    /// The flows that count against the limit of each instance that has one.
    pub fn counted(&self) -> Vec<u32> {
        let counts = self.readings().capacities.all();
        self.image.rows.capacities.keys().map(|id| counts[usize::from(*id)].count().flows()).collect()
    }

    /// Makes every flow idle for so many ticks more.
    pub fn age_flows(&self, ticks: u16) {
        for entry in self.readings().flows.all().iter().flat_map(|bucket| &bucket.entries) {
            if let Some((_, state)) = entry.snapshot() {
                entry.touch(state, state.phase(), state.seen().wrapping_sub(ticks));
            }
        }
    }

    /// Empties the fragment table.
    pub fn forget_fragments(&mut self) -> Result<()> {
        let keys: Vec<_> = self.fragments.keys().collect::<Result<_, _>>()?;
        keys.iter().try_for_each(|key| Ok(self.fragments.remove(key)?))
    }

    /// Sets the upcall state of a destination, as the program reads it.
    pub fn answer_upcall(&mut self, question: &Question, state: u64) -> Result<()> {
        Ok(self.upcalls.states.insert(question.key, state, 0)?)
    }

    pub fn run(&mut self, packet: &Packet) -> Result<Outcome> {
        self.run_bytes(&packet.bytes())
    }

    /// Runs the balancer for XDP on a frame that seems to come in by the loopback interface.
    pub fn run_bytes(&mut self, frame: &[u8]) -> Result<Outcome> {
        self.outcome(|datapath| test_run(datapath.balancer()?, frame))
    }

    /// Runs the balancer for TC ingress on a frame that seems to come in by the loopback interface.
    pub fn run_at_tc_ingress(&mut self, frame: &[u8]) -> Result<Outcome> {
        self.outcome(|datapath| test_run(datapath.balancer_at_tc_ingress()?, frame))
    }

    fn outcome(&mut self, run: impl FnOnce(&mut Datapath) -> Result<(u32, Vec<u8>)>) -> Result<Outcome> {
        self.enter()?;
        let before = self.readings().counters()?;
        let (action, frame) = run(&mut self.datapath)?;
        let after = self.readings().counters()?;
        Ok(Outcome { action, frame, counted: grown(&before, &after) })
    }
}

impl Rig {
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Whether the kernel supports live frames.
    pub fn has_live_frames(&self) -> bool {
        self.datapath.has_live_frames()
    }

    /// Injects a frame as if it had come in by this interface: as a live frame, or by the daemon.
    pub fn inject(&self, live: bool, frame: &[u8], from: u32) -> Result<()> {
        self.enter()?;
        if live {
            self.datapath.inject_live(frame, from)
        } else {
            inject::inject_copy(&self.datapath, frame, from, None)
        }
    }

    /// The program, for callers with a loop of their own.
    pub fn balancer(&mut self) -> Result<&Xdp> {
        Ok(self.datapath.balancer()?)
    }

    /// Runs this on every CPU at the same time, in the rig's namespace.
    pub fn on_each_cpu<T: Send>(&mut self, work: impl Fn(&Xdp) -> Result<T> + Sync) -> Result<Vec<T>> {
        let (program, namespace): (&Xdp, _) = (self.datapath.balancer()?, &self.namespace);
        let cpus = cpu::available()?;
        std::thread::scope(|scope| {
            let workers: Vec<_> = cpus
                .into_iter()
                .map(|cpu| {
                    let work = &work;
                    scope.spawn(move || {
                        cpu::stay_on(cpu)?;
                        namespace.enter()?;
                        work(program)
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().expect("the work does not panic")).collect()
        })
    }
}

pub fn test_run<P>(program: &P, frame: &[u8]) -> Result<(u32, Vec<u8>)>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    let mut out = vec![0; frame.len() + 256];
    let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
    let result = program.test_run(options).context("BPF_PROG_TEST_RUN")?;
    out.truncate(result.data_size_out as usize);
    Ok((result.return_value, out))
}

/// The counters that grew. Checks that every packet seen has exactly one exit.
pub fn grown(before: &[u64], after: &[u64]) -> BTreeMap<String, u64> {
    let mut counted = BTreeMap::new();
    let mut exits = 0;
    for index in 0..COUNTERS {
        let growth = after[index as usize] - before[index as usize];
        if let Some((verdict, reason)) = exit_name(index) {
            exits += growth;
            if growth > 0 {
                counted.insert(format!("{verdict} {reason}"), growth);
            }
        } else if index == UNRECORDED_COUNTER && growth > 0 {
            counted.insert("unrecorded".to_owned(), growth);
        } else if index == UPCALL_LOST_COUNTER && growth > 0 {
            counted.insert("unasked".to_owned(), growth);
        } else if index == FULL_COUNTER && growth > 0 {
            counted.insert("full".to_owned(), growth);
        }
    }
    let seen = after[SEEN_COUNTER as usize] - before[SEEN_COUNTER as usize];
    assert_eq!(exits, seen, "the exits must add up to the packets seen");
    counted
}

/// A module at the families' backend addresses whose last byte is `host`.
pub fn module(mode: ForwardMode, host: u8) -> Module {
    let route = |protocol, port, listen_port| Route {
        protocol,
        source: None,
        destination: Destination::EveryVip,
        port: Some(port),
        priority: 0,
        listen_port: (mode == ForwardMode::Nat).then_some(listen_port),
        targets: Targets::Implied,
        headers: Texts::new(),
        path_pattern: String::new(),
        metadata: Texts::new(),
    };
    Module {
        module_type: ModuleType::Alb,
        deployment: ModuleType::Alb.into(),
        version: String::new(),
        weight: 100,
        health: Health::Healthy,
        data: DataAddresses {
            v4: Some([10, 0, 0, host].into()),
            v6: Some(std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host as u16)),
        },
        mode,
        snat: Snat::Always,
        listen_port: None,
        max_connections: 0,
        quic: None,
        abilities: Default::default(),
        routes: Routes::from(vec![
            ("tcp".to_owned(), route(Protocol::Tcp, 80, 8080)),
            ("udp".to_owned(), route(Protocol::Udp, 53, 8080)),
        ]),
    }
}

/// The source port of a TCP or UDP frame without tags, options or extensions.
pub fn source_port(frame: &[u8]) -> u16 {
    let l4 = if frame[12..14] == [0x08, 0] { 34 } else { 54 };
    u16::from_be_bytes([frame[l4], frame[l4 + 1]])
}

impl Outer {
    pub fn of(family: &Family, flow_label: u32) -> Outer {
        Outer { src: family.source, dst: family.backend, ttl: 64, flow_label, udp: None }
    }

    /// Adds an outer UDP header, with a checksum over IPv6 only.
    pub fn in_udp(self, sport: u16) -> Outer {
        let checksum = if self.dst.is_ipv4() { UdpChecksum::Zero } else { UdpChecksum::Computed };
        Outer { udp: Some(OuterUdp { sport, dport: GUE_PORT, checksum }), ..self }
    }

    pub fn without_udp_checksum(self) -> Outer {
        Outer { udp: self.udp.map(|udp| OuterUdp { checksum: UdpChecksum::Zero, ..udp }), ..self }
    }
}
