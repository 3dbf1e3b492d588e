//! QUIC connection ids (row 35): the model's parser, and ids for generated packets.

use nlb::model::{Module, Server};

use crate::random::Random;

/// The two configurations, each with the length of its server ids. Modules have one or the other.
const CONFIGS: [(u8, u8); 2] = [(0, 1), (3, 3)];

/// The server id of a module in one of the configurations.
pub fn server(number: u8, config: u8) -> Option<Server> {
    let (_, len) = CONFIGS.iter().find(|(of, _)| *of == config)?;
    Server::new(config, &octets(number, *len))
}

fn octets(number: u8, len: u8) -> Vec<u8> {
    (1..len).map(|n| n ^ 0x5c).chain([number]).collect()
}

pub fn any_config(random: &mut Random) -> u8 {
    random.pick(&CONFIGS).0
}

/// Whether the connection id of a datagram names this module.
pub fn names(payload: &[u8], module: &Module) -> bool {
    module.quic.is_some_and(|server| {
        connection_id(payload).is_some_and(|id| {
            let wanted = &server.id.to_be_bytes()[..server.len.into()];
            let least = 1 + wanted.len() + 4;
            id[0] >> 5 == server.config && id.len() >= least && id[1..].starts_with(wanted)
        })
    })
}

/// The destination connection id. A short header does not contain its length.
fn connection_id(payload: &[u8]) -> Option<&[u8]> {
    // Packets with fewer bytes after the id's start than the longest server id has are ignored.
    const LEAST: usize = 9;
    let is_long = *payload.first()? >= 0x80;
    let rest = payload.get(if is_long { 6 } else { 1 }..).filter(|rest| rest.len() >= LEAST)?;
    match is_long {
        true if payload[5] == 0 => None,
        // An id whose length exceeds the packet ends with the packet.
        true => Some(&rest[..rest.len().min(payload[5].into())]),
        false => Some(rest),
    }
}

/// The payload of a QUIC packet, mostly with the server id of a module.
pub fn payload(random: &mut Random) -> Vec<u8> {
    let (config, len) = random.pick(&CONFIGS);
    let number = random.below(5) as u8 + 1;
    let config = if random.once_in(6) { random.below(8) as u8 } else { config };
    let first = config << 5 | random.word() as u8 & 0x1f;
    let nonce = random.word().to_be_bytes();
    let id = [&[first][..], &octets(number, len), &nonce[..random.pick(&[4, 4, 8])]].concat();
    let mut payload = match random.once_in(2) {
        true => [&[0x40][..], &id, &[0x6b; 20]].concat(),
        false => {
            let length = if random.once_in(8) { random.below(21) as u8 } else { id.len() as u8 };
            [&[0xc0, 0, 0, 0, 1, length][..], &id, &[0; 21]].concat()
        }
    };
    if random.once_in(8) {
        payload.truncate(random.below(24));
    }
    payload
}
