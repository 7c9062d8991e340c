"""What joins the pools with other libraries. Each part needs its library, and the core imports none of them."""
