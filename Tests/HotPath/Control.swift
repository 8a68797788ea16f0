/// The control of the check beside this file.
final class Box {
  var value = 0
  var kept: Box?
}

enum Control {
  /// Retains what it keeps: must be found out.
  @inline(never) public static func keeps(_ box: Box, in other: Box) { other.kept = box }
  /// Retains nothing.
  @inline(never) public static func looks(_ number: UnsafePointer<Int>) -> Int { number.pointee &+ 1 }
}
