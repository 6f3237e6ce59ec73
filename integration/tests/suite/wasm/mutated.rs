//! Modules with random faults: whatever the engine makes of them, the runtime ends in order, and leaves nothing.

use std::fs;
use std::path::Path;

use proa_integration::{Bundle, Ctx, everything, tests};
use serde_json::json;

tests! {
    mutated_modules_end_in_order .once().only_proa().seconds(if everything() { 7200 } else { 300 });
    random_bytes_are_refused_by_name .once().only_proa().seconds(120);
}

/// xorshift64, Marsaglia 2003: the same sequence each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

fn bundle(ctx: &Ctx) -> Bundle {
    let bundle = ctx.bundle();
    bundle.args(&["/module.wasm"]).set(
        "/annotations",
        json!({
            "run.oci.handler": "wasm",
            "proa.wasm/deadline": "2s",
            "proa.wasm/pages": "256",
            "proa.wasm/table-elements": "10000",
        }),
    );
    bundle
}

/// A few faults of the kinds that files and attackers make.
fn mutate(module: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..1 + random.below(4) {
        let at = random.below(module.len());
        match random.below(5) {
            0 => module[at] ^= 1 << random.below(8),
            1 => module[at] = random.next() as u8,
            2 => module.insert(at, random.next() as u8),
            3 => drop(module.remove(at)),
            _ => module.truncate(at.max(9)),
        }
    }
}

fn mutated_modules_end_in_order(ctx: &Ctx) {
    let wasm = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/wasm");
    let whole: Vec<Vec<u8>> = ["hello", "files", "trap", "start-traps"]
        .iter()
        .map(|name| fs::read(wasm.join(name).with_extension("wasm")).expect("`make fixtures` makes it"))
        .collect();
    let bundle = bundle(ctx);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut refused, mut ran) = (0, 0);
    let rounds = if everything() { 50_000 } else { 200 };
    for round in 0..rounds {
        let mut module = whole[round % whole.len()].clone();
        mutate(&mut module, &mut random);
        fs::write(bundle.path("/module.wasm"), &module).unwrap();
        let out = ctx.run(&bundle);
        // Not killed itself, and not by a bug of its own; what the engine does in the container's process is its matter.
        assert!(
            out.code < 1000 && !out.stderr.contains("panicked"),
            "round {round}: {out:?}"
        );
        match out.log.contains("wasm module /module.wasm: ") {
            true => {
                assert_eq!(out.code, 1, "round {round}: {out:?}");
                refused += 1;
            }
            false => ran += 1,
        }
    }
    eprintln!("{refused} were refused, {ran} ran");
    // Or the faults are not of the kind that matters.
    assert!(refused > 20 && ran > 20, "{refused} were refused, {ran} ran");
}

fn random_bytes_are_refused_by_name(ctx: &Ctx) {
    let bundle = bundle(ctx);
    let mut random = Random(1);
    for length in [1, 4, 8, 9, 64, 4096] {
        for magic in [false, true] {
            let mut bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
            if magic && length >= 8 {
                bytes[..8].copy_from_slice(b"\0asm\x01\0\0\0");
            }
            fs::write(bundle.path("/module.wasm"), &bytes).unwrap();
            ctx.run(&bundle).code(1).refused(&["wasm module /module.wasm: "]);
        }
    }
}
