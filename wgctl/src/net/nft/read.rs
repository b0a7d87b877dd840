//! Reads the table from the kernel.

use wgctl_plan::Transit;

use super::super::netlink::*;
use super::encode::*;
use super::*;

/// Returns the ruleset's generation, which changes with every transaction of any program.
pub fn generation(netlink: &mut Netlink) -> Result<u32, NetlinkError> {
    let answer = netlink.get(Message::new(GETGEN, 0, &[NFPROTO_UNSPEC, 0, 0, 0]))?;
    Ok(be32(answer.attrs(HEADER), GEN_ID).unwrap_or(0))
}

/// Stands for a table of ours that another program changed: never desired, so always repaired.
fn tampered() -> Transit {
    Transit::default()
}

/// Returns the transit of the present table.
pub fn read(netlink: &mut Netlink) -> Result<Option<Transit>, NetlinkError> {
    const ENOENT: i32 = nix::errno::Errno::ENOENT as i32;
    let table = match netlink.get(in_table(GETTABLE, 0)) {
        Ok(table) => table,
        Err(failed) if failed.errno == ENOENT => return Ok(None),
        Err(failed) => return Err(failed),
    };
    // A dormant one, for one.
    if be32(table.attrs(HEADER), TABLE_FLAGS) != Some(0) || !as_programmed(netlink)? {
        return Ok(Some(tampered()));
    }
    let mut found = [const { Vec::new() }; 3];
    for set in &SETS {
        let request = in_table(GETSETELEM, 0).attr_str(ELEMENTS_SET, set.name);
        let mut elements = Vec::new();
        for part in netlink.dump(request)? {
            let list = Attrs::of(part.attrs(HEADER).get(ELEMENTS).unwrap_or_default());
            elements.extend(list.filter_map(|(_, e)| element(Attrs::of(e))));
        }
        let Some(ranges) = from_elements(elements, set.family) else { return Ok(Some(tampered())) };
        found[set.part as usize].extend(ranges.into_iter().flat_map(|r| prefixes(r, set.family)));
    }
    let [own, near, far] = found.map(|prefixes: Vec<IpNet>| prefixes.into_iter().collect());
    Ok(Some(Transit { own, near, far }))
}

fn element(attrs: Attrs<'_>) -> Option<Element> {
    let key = Attrs::of(attrs.get(ELEMENT_KEY)?).get(DATA_VALUE)?;
    let mut bytes = [0; 16];
    bytes.get_mut(16usize.checked_sub(key.len())?..)?.copy_from_slice(key);
    let end = be32(attrs, ELEMENT_FLAGS).is_some_and(|flags| flags & ELEMENT_INTERVAL_END != 0);
    Some((u128::from_be_bytes(bytes), end))
}

/// True if chains, sets and rules are those of [`set`], whatever the sets hold.
fn as_programmed(netlink: &mut Netlink) -> Result<bool, NetlinkError> {
    // A kernel that does not filter dumps by table returns all tables.
    let mut ours = |kind| {
        let all = netlink.dump(in_table(kind, 0))?;
        let ours = |m: &Received| {
            m.payload.first() == Some(&NFPROTO_INET) && m.attrs(HEADER).str(OF_TABLE) == Some(TABLE)
        };
        Ok::<_, std::io::Error>(all.into_iter().filter(ours).collect::<Vec<_>>())
    };
    let chains = ours(GETCHAIN)?;
    let is = |m: &Received, chain: &Chain| {
        let attrs = m.attrs(HEADER);
        let hook = Attrs::of(attrs.get(CHAIN_HOOK).unwrap_or_default());
        attrs.str(CHAIN_NAME) == Some(chain.name)
            && attrs.str(CHAIN_TYPE) == Some(chain.kind)
            && be32(attrs, CHAIN_POLICY) == Some(NF_ACCEPT)
            && be32(hook, HOOK_NUMBER) == Some(chain.hook)
            && be32(hook, HOOK_PRIORITY) == Some(chain.priority as u32)
    };
    let sets = ours(GETSET)?;
    let set = |set: &Set| {
        sets.iter().map(|m| m.attrs(HEADER)).any(|attrs| {
            attrs.str(SET_NAME) == Some(set.name)
                && be32(attrs, SET_FLAGS) == Some(SET_FLAG_INTERVAL)
                && be32(attrs, SET_KEY_LEN) == Some(address_length(set.family) as u32)
        })
    };
    let rules = ours(GETRULE)?;
    let rules = rules.iter().map(|m| m.attrs(HEADER).get(RULE_USERDATA).map(<[u8]>::to_vec));
    let wanted = RULES.map(|(family, job)| Some(comment(family, job)));
    Ok(chains.len() == CHAINS.len()
        && CHAINS.iter().all(|chain| chains.iter().any(|m| is(m, chain)))
        && sets.len() == SETS.len()
        && SETS.iter().all(set)
        && rules.eq(wanted))
}
