//! Varints: seven bits a byte, low bits first, in the one shortest form.

/// The most bytes a varint takes.
const VARINT_BYTES_MAX: usize = 10;

/// The varint of `value`, in an array with its length.
pub(crate) fn varint(mut value: u64) -> ([u8; VARINT_BYTES_MAX], usize) {
    let mut bytes = [0; VARINT_BYTES_MAX];
    let mut count = 0;
    while value >= 0x80 {
        bytes[count] = value as u8 | 0x80;
        value >>= 7;
        count += 1;
    }
    bytes[count] = value as u8;
    (bytes, count + 1)
}

/// Takes a varint from the front of `rest`. `None`, with `rest` as it was, if there is none: `rest`
/// ends inside it, it does not fit 64 bits, or it is not in its shortest form. One value has one
/// encoding, so equal frames have equal bytes.
pub(crate) fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for (index, &byte) in rest.iter().enumerate().take(VARINT_BYTES_MAX) {
        if index + 1 == VARINT_BYTES_MAX && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            if byte == 0 && index > 0 {
                return None;
            }
            *rest = &rest[index + 1..];
            return Some(value);
        }
    }
    None
}

/// Goes past a varint, or past as many bytes as one has at most; `None` if `rest` ends before that.
pub(crate) fn skip_varint(rest: &mut &[u8]) -> Option<()> {
    let most = &rest[..rest.len().min(VARINT_BYTES_MAX)];
    let last = most.iter().position(|byte| byte & 0x80 == 0);
    let count = match last {
        Some(last) => last + 1,
        None if most.len() == VARINT_BYTES_MAX => VARINT_BYTES_MAX,
        None => return None,
    };
    *rest = &rest[count..];
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_comes_back() {
        for shift in 0..64 {
            for value in [1u64 << shift, (1u64 << shift) - 1, u64::MAX >> shift] {
                let (bytes, count) = varint(value);
                let mut rest = &bytes[..count];
                assert_eq!(take_varint(&mut rest), Some(value));
                assert!(rest.is_empty());
                let mut rest = &bytes[..count];
                assert_eq!(skip_varint(&mut rest), Some(()));
                assert!(rest.is_empty());
                let mut rest = &bytes[..count - 1];
                assert_eq!(skip_varint(&mut rest), None);
            }
        }
    }

    #[test]
    fn only_the_shortest_form_that_fits_is_taken() {
        let too_wide = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
        for bad in [
            &[0x80, 0x00][..],
            &[0x81, 0x80, 0x00],
            &[0x80],
            &[],
            &too_wide,
            &[0xff; 11],
        ] {
            let mut rest = bad;
            assert_eq!(take_varint(&mut rest), None, "{bad:x?}");
            assert_eq!(rest, bad);
        }
    }
    #[test]
    fn a_varint_that_does_not_end_is_as_long_as_one_can_be() {
        let mut rest = &[0xff; 12][..];
        assert_eq!(skip_varint(&mut rest), Some(()));
        assert_eq!(rest.len(), 2);
        assert_eq!(skip_varint(&mut rest), None);
    }
}
