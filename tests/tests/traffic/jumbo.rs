//! Jumbo frames (row 27): served by native XDP if the driver puts each into one buffer, else by generic XDP.

use anyhow::{Context, Result, ensure};
use nlb_testkit::lab::Lab;
use nlb_testkit::process::MAX_WAIT;
use nlb_testkit::programs::built;
use tokio::net::UdpSocket;

use crate::bulk::download_beside;
use crate::clients::{Connection, on};
use crate::fleet::{Fleet, Mode, vips};

/// The longest MTU for which veths use one buffer, with pages of 4 KiB.
const ONE_BUFFER: u32 = 3498;
/// Longer MTUs: that of most networks' jumbo frames, and the longest.
const SEVERAL: [u32; 2] = [9000, 65_535];

const MODES: [Mode; 3] = [Mode::Nat, Mode::DsrL2, Mode::DsrIpip];

fn lab_with_mtu(mtu: u32) -> Result<Lab> {
    let lab = Lab::one_arm(1, 1)?;
    lab.set_mtu(mtu)?;
    Ok(lab)
}

/// Checks the XDP mode, long lines both ways, a download, and datagrams up to the MTU.
fn serves(mtu: u32, mode: Mode, xdp: &str, expected: &str) -> Result<()> {
    let fleet = Fleet::start_with(lab_with_mtu(mtu)?, mode, &[100], &[], &["--xdp-mode", xdp])?;
    let status = fleet.nlb(&["status"])?;
    let mode_line = status.lines().find(|line| line.starts_with("xdp.eth0")).unwrap_or_default();
    ensure!(mode_line.ends_with(expected), "{status}");
    download_beside(&fleet, mode)?;
    let client = &fleet.lab.clients[0];
    on(client, || async {
        for vip in vips() {
            let mut connection = Connection::open(vip).await?;
            for _ in 0..20 {
                connection.echo(&"long".repeat(50_000)).await?;
            }
            let headers = if vip.is_ipv4() { 28 } else { 48 };
            let room = if mode == Mode::DsrIpip { headers - 8 } else { 0 };
            // The answer begins with the module's name.
            let longest = mtu.min(65_535) as usize - headers - room - "m0 ".len();
            for length in [1400, longest / 2, longest] {
                datagram(vip, length).await.with_context(|| format!("{length} bytes to {vip}"))?;
            }
        }
        Ok(())
    })
    .with_context(|| fleet.nlb(&["status", "--packets"]).unwrap_or_default())
}

async fn datagram(to: std::net::SocketAddr, length: usize) -> Result<()> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await?;
    let question = vec![b'q'; length];
    socket.send_to(&question, to).await?;
    let mut answer = vec![0; 1 << 16];
    let received = tokio::time::timeout(MAX_WAIT, socket.recv(&mut answer)).await;
    let length = received.context("no answer")??;
    ensure!(answer[..length].ends_with(&question), "an answer of {} bytes", length);
    Ok(())
}

#[test]
fn row_27_jumbo_frames_in_one_buffer_are_served_in_native_mode() -> Result<()> {
    for mode in MODES {
        serves(ONE_BUFFER, mode, "native", "native").with_context(|| format!("{mode:?}"))?;
    }
    Ok(())
}

#[test]
fn row_27_longer_jumbo_frames_are_served_in_generic_mode() -> Result<()> {
    for mtu in SEVERAL {
        for mode in MODES {
            serves(mtu, mode, "auto", "generic").with_context(|| format!("{mode:?}, MTU {mtu}"))?;
        }
    }
    Ok(())
}

#[test]
fn row_27_native_mode_refuses_longer_jumbo_frames() -> Result<()> {
    for mtu in SEVERAL {
        let lab = lab_with_mtu(mtu)?;
        let mut serve = lab.nlb.netns.command(built("nlb")?);
        serve.args(["serve", "--iface", "eth0", "--xdp-mode", "native", "--state-dir"]);
        let refused = serve.arg(lab.files().join("state")).output()?;
        let message = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(!refused.status.success(), "the daemon has started");
        for part in ["cannot attach to eth0", "do not fit in one of the driver's buffers", "set a lower MTU"]
        {
            ensure!(message.contains(part), "{message}");
        }
    }
    // While XDP runs in native mode, the kernel refuses a longer MTU.
    let fleet =
        Fleet::start_with(lab_with_mtu(ONE_BUFFER)?, Mode::Nat, &[100], &[], &["--xdp-mode", "native"])?;
    let refused = fleet.lab.set_mtu(SEVERAL[0]).err().context("a longer MTU than the driver supports")?;
    ensure!(refused.to_string().contains("mtu"), "{refused}");
    Ok(())
}
