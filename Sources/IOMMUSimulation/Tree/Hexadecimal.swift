/// A number in lower-case hexadecimal with leading zeros and no prefix.
func hexadecimal(_ value: UInt64, width: Int) -> String {
  let digits = String(value, radix: 16)
  return String(repeating: "0", count: max(0, width - digits.count)) + digits
}
