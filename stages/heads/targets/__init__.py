"""What is learnt: tasks as columns, losses, calibration, class weights."""
