// What sync(for: .cpu) shows ends with its closure.
import IOMMU

func spanEscapes(_ mapping: inout Mapping) {
  var kept = RawSpan()
  mapping.sync(for: .cpu) { span in kept = span.bytes }
  _ = kept.byteCount
}
// expected-error: lifetime
