//! A TCP connection through NAT, packet by packet.

use anyhow::Result;

use crate::packet::{ACK, Packet, SYN, Transport};
use crate::rig::{Family, Rig, XDP_REDIRECT, source_port};

pub struct Connection {
    pub family: Family,
    pub syn: Packet,
    /// The port that the backend sees.
    pub port: u16,
}

impl Connection {
    pub fn open(rig: &mut Rig, family: Family, syn: Packet) -> Result<Connection> {
        let port = forwards(rig, &syn)?;
        let connection = Connection { family, syn, port };
        connection.answers(rig, SYN | ACK)?;
        connection.sends(rig, ACK, 1001)?;
        Ok(connection)
    }

    /// The client sends this, and the backend gets it from the connection's port.
    pub fn sends(&self, rig: &mut Rig, flags: u8, seq: u32) -> Result<()> {
        assert_eq!(forwards(rig, &tcp(&self.syn, flags, seq))?, self.port);
        Ok(())
    }

    /// The backend sends this, and the client gets it.
    pub fn answers(&self, rig: &mut Rig, flags: u8) -> Result<()> {
        let request = self.family.translated(&self.syn, self.port);
        let outcome = rig.run(&self.family.answer(&request, Transport::Tcp { flags, seq: 9000 }))?;
        assert_eq!(outcome.counted, [("send reply".to_owned(), 1)].into());
        Ok(())
    }
}

/// Checks that a packet is forwarded, and returns the port that the backend sees.
pub fn forwards(rig: &mut Rig, packet: &Packet) -> Result<u16> {
    let outcome = rig.run(packet)?;
    assert_eq!(outcome.action, XDP_REDIRECT, "{packet:?}: {:?}", outcome.counted);
    Ok(source_port(&outcome.frame))
}

pub fn tcp(packet: &Packet, flags: u8, seq: u32) -> Packet {
    packet.with(|p| p.l4 = Transport::Tcp { flags, seq })
}
