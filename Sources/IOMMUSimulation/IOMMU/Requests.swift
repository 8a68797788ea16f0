// Requests of devices, as hardware takes them: cut where one translation ends and the next begins.

extension SimulatedIOMMU {
  /// Where a translated address lies in this process, and how many bytes from there on have the same translation.
  struct Place {
    var host: UInt
    var byteCount: UInt64
  }

  /// The memory of a request as a whole, by the translation of one address after the other; the first that fails ends it.
  static func segments<Failure: Error>(
    _ iova: UInt64, _ byteCount: Int, translate: (UInt64) throws(Failure) -> Place
  ) throws(Failure) -> [Segment] {
    var segments: [Segment] = []
    var (address, left) = (iova, UInt64(byteCount))
    while left > 0 {
      let place = try translate(address)
      let length = min(left, place.byteCount)
      segments.append(Segment(host: place.host, byteCount: Int(length)))
      left -= length
      // The top of the address space is beyond every input.
      address &+= length
    }
    return segments
  }
}
