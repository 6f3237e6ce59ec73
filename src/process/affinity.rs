//! Lists of CPUs and NUMA nodes as the kernel writes them (`0-3,5,7-9`; cpuset(7), "List format").

use std::collections::BTreeSet;

/// The largest number taken, as in runc: bounds the mask that a bogus list could ask for.
pub(super) const MAX: u32 = 64 * 1024;

/// The numbers in `list`, ascending. Spaces and empty elements are allowed, as in runc; an empty list has no numbers.
pub(super) fn parse_list(list: &str) -> Result<Vec<u32>, String> {
    let number = |text: &str| match text.parse::<u32>() {
        Ok(number) if number <= MAX => Ok(number),
        Ok(_) => Err(format!("values larger than {MAX} are not supported")),
        Err(error) => Err(format!("{text:?}: {error}")),
    };
    let mut numbers = BTreeSet::new();
    for element in list.split(',').map(str::trim).filter(|element| !element.is_empty()) {
        let (first, last) = element.split_once('-').unwrap_or((element, element));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("invalid range: {element}"));
        }
        numbers.extend(first..=last);
    }
    if numbers.is_empty() && !list.is_empty() {
        return Err(format!("no members found in set {list:?}"));
    }
    Ok(numbers.into_iter().collect())
}

/// `cpus`, ascending, as a hexadecimal mask.
pub(super) fn mask(cpus: &[u32]) -> String {
    let mut digits = vec![0; cpus.last().map_or(0, |last| last / 4) as usize + 1];
    for cpu in cpus {
        digits[(cpu / 4) as usize] |= 1 << (cpu % 4);
    }
    let digits = digits.iter().rev().map(|digit| format!("{digit:x}"));
    format!("0x{}", digits.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::{mask, parse_list};

    #[test]
    fn masks_are_hexadecimal() {
        assert_eq!(mask(&[]), "0x0");
        assert_eq!(mask(&[0, 1]), "0x3");
        assert_eq!(mask(&[1, 5, 64]), "0x10000000000000022");
    }

    #[test]
    fn lists_as_the_kernel_writes_them() {
        assert!(parse_list("").unwrap().is_empty());
        assert_eq!(parse_list("3").unwrap(), [3]);
        assert_eq!(parse_list("0-2,5,1-3").unwrap(), [0, 1, 2, 3, 5]);
        assert_eq!(parse_list(" 1 ,, 2").unwrap(), [1, 2]);
        assert_eq!(parse_list("65536").unwrap(), [65536]);
    }

    #[test]
    fn anything_else_is_refused() {
        for list in ["a", "1-", "-1", "3-1", ",", "65537", "1.5", "0x3"] {
            assert!(parse_list(list).is_err(), "{list}");
        }
    }
}
