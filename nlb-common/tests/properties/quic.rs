//! The server that is read from a QUIC packet: the one that its connection id was made for, and nothing from
//! outside the packet.

use nlb_common::quic::{CONFIGS, Lengths, MAX_ID, Server, server};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// A configuration, and the octets of a server id.
fn names() -> impl Strategy<Value = (u8, Vec<u8>)> {
    (0..CONFIGS, vec(any::<u8>(), 1..=MAX_ID))
}

/// A UDP datagram, from its header on.
fn datagram(payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u16 + 8).to_be_bytes();
    [&[0xc3, 0x50, 0x01, 0xbb, len[0], len[1], 0, 0][..], payload].concat()
}

/// A packet with this connection id, as short as QUIC packets get: 20 bytes follow the id.
fn packet(is_long: bool, version: u32, id: &[u8]) -> Vec<u8> {
    let head = match is_long {
        false => vec![0x40],
        true => [&[0xe0][..], &version.to_be_bytes(), &[id.len() as u8]].concat(),
    };
    datagram(&[&head[..], id, &[0; 20]].concat())
}

proptest! {
    #[test]
    fn the_server_is_found_by_the_id_that_it_made(
        (config, octets) in names(),
        own in 0..32_u8,
        nonce in vec(any::<u8>(), 4..10),
        is_long: bool,
        version: u32,
        before in 0..40_usize,
        others: u32,
    ) {
        let made = Server::new(config, &octets).expect("a configuration, and a length that is allowed");
        let id = [&[config << 5 | own][..], &octets, &nonce].concat();
        let frame = [vec![0xee; before], packet(is_long, version, &id)].concat();
        let lengths = Lengths::from_word(others & 0x0fff_ffff).with(&made);
        prop_assert_eq!(server(&frame[..], before, frame.len(), lengths), Some(made));
        let unused = Lengths::from_word(lengths.word() & !(0xf << (4 * config)));
        prop_assert_eq!(server(&frame[..], before, frame.len(), unused), None);
    }

    #[test]
    fn ids_that_name_no_server_are_recognised(octets in vec(any::<u8>(), 8..20), own in 0..32_u8, is_long: bool) {
        let id = [&[CONFIGS << 5 | own][..], &octets].concat();
        let frame = packet(is_long, 1, &id);
        prop_assert_eq!(server(&frame[..], 0, frame.len(), Lengths::from_word(0x0888_8888)), None);
    }

    #[test]
    fn an_id_that_says_it_is_too_short_is_not_read(octets in vec(any::<u8>(), 1..=MAX_ID), short in 1..6_usize) {
        let made = Server::new(0, &octets).expect("a length that is allowed");
        let mut frame = packet(true, 1, &[&[0][..], &octets, &[0; 4]].concat());
        frame[13] = (1 + octets.len() + 4).saturating_sub(short) as u8;
        prop_assert_eq!(server(&frame[..], 0, frame.len(), Lengths::default().with(&made)), None);
    }

    /// The bytes behind the end of the datagram or the IP packet make no difference.
    #[test]
    fn noise_is_never_read_beyond_its_end(
        noise in vec(any::<u8>(), 0..60),
        len in 0..60_u16,
        end: Index,
        lengths in any::<u32>().prop_map(|word| Lengths::from_word(word & 0x0888_8888)),
        other: u8,
    ) {
        let mut frame = noise.clone();
        if let Some(field) = frame.get_mut(4..6) {
            field.copy_from_slice(&len.to_be_bytes());
        }
        let end = end.index(frame.len() + 1);
        let found = server(&frame[..], 0, end, lengths);
        let inside = end.min(usize::from(len)).max(8);
        for byte in frame.iter_mut().skip(inside) {
            *byte = other;
        }
        prop_assert_eq!(server(&frame[..], 0, end, lengths), found);
        if let Some(found) = found {
            prop_assert!(found.config < CONFIGS && lengths.of(found.config) == u32::from(found.len));
        }
    }
}

#[test]
fn servers_have_ids_of_1_to_8_octets() {
    assert_eq!(Server::new(0, &[]), None);
    assert_eq!(Server::new(6, &[1; 9]), None);
    assert_eq!(Server::new(7, &[1]), None);
    assert_eq!(Server::new(6, &[1, 2]), Some(Server { config: 6, len: 2, id: 0x0102_0000_0000_0000 }));
}
