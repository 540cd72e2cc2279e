"""From a signal in millivolts to model input, and to beats and waves: what several experts share."""
