//! ipBlock peers. sNN in the name of a test is an item of docs/semantics.md.

use super::*;

#[test]
fn s11_and_s12_an_except_subtracts_from_its_own_block_only() {
    let with_except = "podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}]";
    let two_blocks = "podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}, {ipBlock: {cidr: 10.1.2.0/24}}]}]";
    let by_port = "podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 80}]}, {from: [{ipBlock: {cidr: 10.1.2.0/24}}], ports: [{port: 443}]}]";
    let allow_excepted = "podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/16}}]}]";
    check(&[
        (&[with_except], "10.2.0.1", "shop/web:80", true),
        (&[with_except], "10.1.0.1", "shop/web:80", false),
        (&[two_blocks], "10.1.2.1", "shop/web:80", true),
        (&[two_blocks], "10.1.3.1", "shop/web:80", false),
        (&[with_except, allow_excepted], "10.1.3.1", "shop/web:80", true),
        (&[by_port], "10.1.2.1", "shop/web:80", true),
        (&[by_port], "10.1.2.1", "shop/web:443", true),
        (&[by_port], "10.1.3.1", "shop/web:443", false),
    ]);
}

#[test]
fn s13_host_bits_are_ignored_and_invalid_blocks_match_nothing() {
    let block = |block: &str| format!("podSelector: {{}}, ingress: [{{from: [{{ipBlock: {{{block}}}}}]}}]");
    let cases = [
        ("cidr: 10.1.2.3/16", "10.1.9.9", true),
        ("cidr: 0.0.0.0/0", "198.51.100.1", true),
        ("cidr: 0.0.0.0/0", "2001:db8::1", false),
        ("cidr: '::/0'", "2001:db8::1", true),
        ("cidr: '::/0'", "198.51.100.1", false),
        ("cidr: 0.0.0.0/0, except: [198.51.100.0/24]", "198.51.100.1", false),
        ("cidr: '::/0', except: ['2001:db8::/32']", "2001:db8::1", false),
        ("cidr: '::/0', except: ['2001:db8::/32']", "2001:db9::1", true),
        ("cidr: '::ffff:198.51.100.0/120'", "198.51.100.1", false),
        ("cidr: 10.0.0.0/8, except: [11.0.0.0/8]", "10.0.0.77", false),
        ("cidr: 10.0.0.0/8, except: ['fd00::/8']", "10.0.0.77", false),
    ];
    for (text, from, allowed) in cases {
        assert_eq!(reaches(&cluster(&[&block(text)]), from, "shop/web:80"), allowed, "{from} in {text}");
    }
}

#[test]
fn s14_blocks_apply_to_pod_and_node_addresses() {
    let pods = "podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.1.0/24}}]}]";
    let node = "podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.168.0.0/24}}]}]";
    check(&[
        (&[pods], "ops/probe", "shop/web:80", true),
        (&[pods], "bare/lone", "shop/web:80", false),
        (&[node], "192.168.0.1", "shop/web:80", true),
    ]);
}
