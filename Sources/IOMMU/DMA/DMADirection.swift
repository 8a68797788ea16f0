/// Which way data goes, as the DMA API says it.
///
/// The corresponding C type is `enum dma_data_direction`.
@frozen
public enum DMADirection: Hashable, Sendable {
  /// The device reads what the CPU has written; the device cannot write. The corresponding C constant is `DMA_TO_DEVICE`.
  case toDevice
  /// The CPU reads what the device has written. The device cannot read where the table format can say so (a stage-1
  /// format cannot). The corresponding C constant is `DMA_FROM_DEVICE`.
  case fromDevice
  /// Both. The corresponding C constant is `DMA_BIDIRECTIONAL`.
  case bidirectional
}
