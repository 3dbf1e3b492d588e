//! The layout of the set-associative tables: which entry goes into which bucket.

use nlb_common::abi::{
    ADDRESS_BUCKETS, ADDRESS_WAYS, Address, AddressBucket, SERVICE_BUCKETS, SERVICE_WAYS, ServiceBucket,
    ServiceEntry,
};

/// The address table, or `None` if an entry fits neither its primary bucket nor the next.
pub(crate) fn addresses<'a>(rows: impl Iterator<Item = &'a Address> + Clone) -> Option<Vec<AddressBucket>> {
    let mut table = vec![[Address::default(); ADDRESS_WAYS]; ADDRESS_BUCKETS as usize];
    for row in rows.clone() {
        let free = |entry: &Address| entry.flags & Address::ANY == 0;
        let overflowed = place(&mut table, Address::bucket(row.addr), *row, free)?;
        if overflowed {
            table[Address::bucket(row.addr) as usize][0].flags |= Address::OVERFLOWED;
        }
    }
    if rows.clone().any(|row| row.flags & Address::BACKEND != 0) {
        for bucket in &mut table {
            bucket[0].flags |= Address::TRANSPARENT;
        }
    }
    Some(table)
}

/// The table of services, or `None` if an entry fits neither its primary bucket nor the next.
pub(crate) fn services(rows: impl Iterator<Item = (u64, u16)>) -> Option<Vec<ServiceBucket>> {
    let mut table = vec![[ServiceEntry::default(); SERVICE_WAYS]; SERVICE_BUCKETS as usize];
    for (key, service) in rows {
        let entry = ServiceEntry { key, service, ..Default::default() };
        let overflowed = place(&mut table, ServiceEntry::bucket(key), entry, |entry| entry.key == 0)?;
        if overflowed {
            table[ServiceEntry::bucket(key) as usize][0].overflowed = 1;
        }
    }
    Some(table)
}

/// Puts an entry into its primary bucket or the next; returns whether it is in the next.
fn place<T: Copy, const WAYS: usize>(
    table: &mut [[T; WAYS]],
    bucket: u32,
    entry: T,
    is_free: impl Fn(&T) -> bool,
) -> Option<bool> {
    let home = bucket as usize;
    let next = (home + 1) % table.len();
    for (index, overflowed) in [(home, false), (next, true)] {
        if let Some(free) = table[index].iter_mut().find(|entry| is_free(entry)) {
            *free = entry;
            return Some(overflowed);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use nlb_common::net::Addr;

    fn find(table: &[AddressBucket], addr: Addr) -> Option<&Address> {
        let home = Address::bucket(addr) as usize;
        let here = |bucket: usize| {
            table[bucket].iter().find(|entry| entry.addr == addr && entry.flags & Address::ANY != 0)
        };
        here(home).or_else(|| {
            let overflowed = table[home][0].flags & Address::OVERFLOWED != 0;
            overflowed.then(|| here((home + 1) % table.len())).flatten()
        })
    }

    #[test]
    fn every_address_is_found_where_the_kernel_looks() {
        let rows: Vec<Address> = (0..1500_u32)
            .map(|n| Address {
                addr: Addr::v4(n.to_be_bytes()),
                flags: Address::VIP,
                id: n as u16,
                ..Default::default()
            })
            .collect();
        let table = addresses(rows.iter()).expect("fits");
        for row in &rows {
            assert_eq!(find(&table, row.addr).map(|found| found.id), Some(row.id));
        }
        assert_eq!(find(&table, Addr::v4([9, 9, 9, 9])), None);
    }

    #[test]
    fn an_entry_beyond_both_buckets_is_refused() {
        let same_bucket: Vec<Address> = (0..u32::MAX)
            .map(|n| Addr::v4(n.to_be_bytes()))
            .filter(|addr| Address::bucket(*addr) == 7)
            .take(2 * ADDRESS_WAYS + 1)
            .map(|addr| Address { addr, flags: Address::VIP, ..Default::default() })
            .collect();
        assert!(addresses(same_bucket[..2 * ADDRESS_WAYS].iter()).is_some());
        assert!(addresses(same_bucket.iter()).is_none());
    }
}
