"""What readers of formats share: what a format is, XML within limits, ecgdatakit's door, one recording of channels."""
